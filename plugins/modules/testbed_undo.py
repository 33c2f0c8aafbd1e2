#!/usr/bin/python
"""Takes a testbed off a host, and puts the host back as its record says it was."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_undo
short_description: Remove a testbed from a host; with purge, undo what was done for it
description:
  - Removes the containers, networks and volumes of the testbed's Compose project, and I(paths).
  - With I(purge) it also undoes what the module M(testbed_record) noted. The engine, packages and settings stay until
    the last testbed of the host is purged. Nothing that was there before is removed.
  - The record goes last, so that what was interrupted can be done again.
options:
  testbed:
    description: The testbed's name.
    type: str
    required: true
  project:
    description: Its Compose project.
    type: str
    required: true
  paths:
    description: The testbed's files and folders, first the one with its files.
    type: list
    elements: path
    required: true
  owner:
    description: The id of whose testbed it is. What another id has deployed under this name is left as it is.
    type: str
    required: true
  force:
    description: Whether it is removed even so.
    type: bool
    default: false
  purge:
    description: Whether the host is put back as it was.
    type: bool
    default: false
  record:
    description: The controller's copy of the record, for a host that lost its own. One of another system is refused.
    type: dict
  lock_timeout:
    description: Seconds to wait for another program that holds dpkg's lock.
    type: int
    default: 300
author: fltestbed authors
"""

RETURN = r"""
done:
  description: What was done, or would be in check mode, a line each.
  returned: always
  type: list
  elements: str
testbeds:
  description: Other testbeds on this host, for which engine and packages stay.
  returned: always
  type: list
  elements: str
"""

import fcntl
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path

from ansible.module_utils import testbed_record
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_conditions import Conditions
from ansible.module_utils.testbed_conditions import Refused as ConditionRefused
from ansible.module_utils.testbed_docker import EngineUnreachable, get
from ansible.module_utils.testbed_root import is_foreign, other_owner

# Docker's own chains, and its rules in others: they name such a chain, its bridge or one of its networks' bridges.
DOCKER_CHAIN = re.compile(r"DOCKER(-.+)?")
DOCKER_RULE = re.compile(r"\b(DOCKER|docker0|br-[0-9a-f]{12})\b")
FORWARD = "filter FORWARD"  # the chain of which the engine changes the policy
PROJECT = "com.docker.compose.project"
BUILD = "fltestbed-build-"
ENGINE_DATA = Path("/var/lib/docker")
# Of an engine that the role docker started where there is no systemd.
PID_FILE = Path("/run/fltestbed-dockerd.pid")
ENGINE_LOG = Path("/var/log/fltestbed-dockerd.log")


class Refused(Exception):
    """What stands in the way, and what to do."""


def without(options, merged, before):
    """Return options of a daemon.json without what was merged into them, where the user has not changed it since.

    What was there before comes back; lists lose the items that they did not hold.
    """
    left = dict(options)
    for name, ours in merged.items():
        old, now = before.get(name), left.get(name)
        if all(isinstance(each, dict) for each in (ours, now, old or {})):
            left[name] = without(now, ours, old or {})
        elif all(isinstance(each, list) for each in (ours, now, old or [])):
            left[name] = [item for item in now if item not in ours or item in (old or [])]
            if sorted(map(str, left[name])) == sorted(map(str, old or [])):
                left[name] = old or []  # merging moved what was there already
        elif now == ours:
            left[name] = old
        if left.get(name) in (None, [], {}) and name not in before:
            left.pop(name, None)
    return left


class Undo:
    """One host's way back. Every step may be repeated."""

    def __init__(self, module):
        self.module = module
        self.done = []
        self.record = testbed_record.read()
        copy = module.params["record"]
        if self.record is None and copy and copy["machine"] == testbed_record.machine():
            self.record = copy
        try:
            self.engine = bool(get("/version"))
        except EngineUnreachable:
            self.engine = False

    @property
    def engine_is_ours(self):
        record = self.record
        return not record["before"]["docker"] and bool(set(testbed_record.ENGINE_PACKAGES) & set(record["packages"]))

    def run(self, *command, check=False):
        """Run a program; return (exit code, output). Raises Refused for a failure that matters."""
        if self.module.get_bin_path(command[0]) is None:
            return 127, ""
        code, out, err = self.module.run_command(
            [*command], environ_update={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        )
        if check and code != 0:
            raise Refused(f"{' '.join(command)} failed: {err.strip() or out.strip()}")
        return code, out

    def change(self, text, *command):
        """Note a change, and run the program that makes it unless this is check mode."""
        self.done.append(text)
        if command and not self.module.check_mode:
            self.run(*command, check=True)

    def change_file(self, text, function, *arguments):
        """Note a change, and call the function that makes it unless this is check mode."""
        self.done.append(text)
        if not self.module.check_mode:
            function(*arguments)

    def remove_path(self, path):
        """Remove a file, or a folder with all that is in it. Of a mount point the content alone can go."""
        if testbed_record.state_of(path) == "absent":
            return
        if os.path.ismount(path):
            self.empty(path)
        elif Path(path).is_dir() and not Path(path).is_symlink():
            self.change_file(f"remove {path}", shutil.rmtree, path)
        else:
            self.change_file(f"remove {path}", os.unlink, path)

    def remove_empty(self, path):
        """Remove a folder that nothing lies in."""
        if testbed_record.state_of(path) == "empty" or (
            self.module.check_mode and testbed_record.state_of(path) != "absent"
        ):
            self.change_file(f"remove {path}", os.rmdir, path)

    def empty(self, path):
        for entry in sorted(Path(path).iterdir()):
            self.remove_path(str(entry))

    # What every `down` does

    def remove_testbed(self):
        """Remove the testbed's containers, networks, volumes and files."""
        params = self.module.params
        root = params["paths"][0]
        if not params["force"] and (other := other_owner(root, params["owner"])):
            raise Refused(
                f"{root} belongs to a testbed of the same name that {other} deployed with other keys, and is left as "
                "it is. If it is yours and its keys are lost, fltestbed down --force removes it"
            )
        label = f"label={PROJECT}={params['project']}"
        if self.engine:
            self.remove_all("container", "ls", "--all", "--filter", label)
            self.remove_all("network", "ls", "--filter", label)
            self.remove_all("volume", "ls", "--filter", label)
        elif self.module.get_bin_path("dockerd") and Path(root, "compose.yml").exists():
            last = self.record and set(self.record["testbeds"]) <= {params["testbed"]}
            if not (params["purge"] and last and self.engine_is_ours):
                raise Refused(
                    "the Docker engine does not run, so that the testbed's containers can't be removed. Start it "
                    "(systemctl start docker), and run this again"
                )
        conditions = Conditions(params["project"])
        if conditions.read():
            self.change_file("put the network's conditions back", conditions.forget)
        for path in params["paths"]:
            if path != root or not is_foreign(root):
                self.remove_path(path)

    def remove_all(self, kind, *listing):
        """Remove the engine's objects of a kind that a listing has."""
        ids = self.run("docker", kind, *listing, "--quiet", check=True)[1].split() if self.engine else []
        if ids:
            options = ["--force", "--volumes"] if kind == "container" else []
            self.change(f"remove {len(ids)} {kind}s", "docker", kind, "rm", *options, *ids)

    # What `down --purge` does besides

    def purge(self):
        """Put the host back; return the other testbeds for which it stays as it is."""
        testbed = self.module.params["testbed"]
        if self.record is None:
            return []
        self.remove_all("container", "ls", "--all", "--filter", f"name=^{BUILD}")
        others = [name for name in self.record["testbeds"] if name != testbed]
        if others:
            if testbed in self.record["testbeds"]:
                self.record["testbeds"] = others
                self.change_file("take the testbed off the host's record", testbed_record.write, self.record)
            return others
        if self.engine_is_ours:
            self.require_nobody_else()
        elif self.record["images"] and not self.engine and self.module.get_bin_path("dockerd"):
            raise Refused(
                "the Docker engine does not run, so that the testbed's images can't be removed. Start it "
                "(systemctl start docker), and run this again"
            )
        self.wait_for_dpkg()
        self.require_removable()
        if self.engine_is_ours:
            self.stop_engine()
            self.clean_network()
        else:
            self.remove_images()
        self.purge_packages()
        if self.engine_is_ours:
            self.put_back_engine_paths()
            if not self.record["before"]["docker_group"] and self.run("getent", "group", "docker")[0] == 0:
                self.change("remove the group docker", "groupdel", "docker")
            self.put_back_settings()
        self.put_back_daemon_json()
        for path in self.record["paths"]:
            self.remove_path(path)
        for path in sorted(self.record["folders"], reverse=True):
            self.remove_empty(path)
        if not self.engine_is_ours:
            self.put_back_units()
        if testbed_record.RECORD.exists():
            self.change_file("remove the record", shutil.rmtree, testbed_record.RECORD.parent)
        return []

    def put_back_engine_paths(self):
        """Remove what the engine left, unless there was something before it came."""
        for path, (before, mode) in self.record["before"]["paths"].items():
            if before == "absent":
                self.remove_path(path)
            elif before == "empty" and testbed_record.state_of(path) != "absent":
                self.empty(path)
                if testbed_record.mode_of(path) != mode:
                    self.change_file(f"set the permissions of {path} back", os.chmod, path, mode)

    def require_nobody_else(self):
        """Refuse to remove an engine that others have come to use."""
        if not self.engine:
            if theirs := self.kept_for_others():
                raise Refused(
                    f"the Docker engine does not run, and it keeps what is not fltestbed's: {', '.join(theirs)}. "
                    "Start it (systemctl start docker), remove them, and run this again"
                )
            return
        theirs = self.run("docker", "container", "ls", "--all", "--format", "container {{.Names}}", check=True)[1]
        theirs += self.run("docker", "volume", "ls", "--format", "volume {{.Name}}", check=True)[1]
        if self.module.check_mode:  # the testbed's own are still there
            return
        if theirs.strip():
            raise Refused(
                "fltestbed installed the Docker engine, and by now others use it: "
                f"{', '.join(theirs.strip().splitlines())}. Remove them, and run this again"
            )

    def kept_for_others(self):
        """Return the containers and volumes of others in the files of an engine that does not run."""
        project, found = self.module.params["project"], []
        for file in sorted(ENGINE_DATA.glob("containers/*/config.v2.json")):
            container = json.loads(file.read_text())
            name, labels = container["Name"].lstrip("/"), container["Config"].get("Labels") or {}
            if labels.get(PROJECT) != project and not name.startswith(BUILD):
                found.append(f"container {name}")
        volumes = sorted(path.parent.name for path in ENGINE_DATA.glob("volumes/*/_data"))
        return found + [f"volume {name}" for name in volumes if not name.startswith(f"{project}_")]

    def wait_for_dpkg(self):
        """Wait until nobody installs anything, such as an `up` that was interrupted on the controller alone."""
        lock = Path("/var/lib/dpkg/lock-frontend")
        if not self.record["packages"] or not lock.exists():
            return
        deadline = time.monotonic() + self.module.params["lock_timeout"]
        with lock.open("r+") as file:
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except OSError:
                    if time.monotonic() > deadline:
                        raise Refused(
                            "another program holds dpkg's lock (sudo fuser -v /var/lib/dpkg/lock-frontend names it). "
                            "Wait for it, and run this again"
                        ) from None
                    time.sleep(1)

    def known_packages(self):
        """Return those of the recorded packages that dpkg still knows."""
        if not self.record["packages"]:
            return []
        said = self.run(
            "dpkg-query", "--show", "--showformat=${binary:Package} ${db:Status-Status}\n", *self.record["packages"]
        )[1]
        rows = [line.split() for line in said.splitlines()]
        installed = {name.partition(":")[0] for name, status in rows if status != "not-installed"}
        return [name for name in self.record["packages"] if name.partition(":")[0] in installed]

    def require_removable(self):
        """Refuse when a package that came later needs one of ours."""
        packages = self.known_packages()
        if not packages:
            return
        if list(Path("/var/lib/dpkg/updates").glob("[0-9]*")):
            self.change("finish an interrupted installation", "dpkg", "--configure", "-a")
        said = self.run("apt-get", "purge", "--simulate", *packages, check=True)[1]
        removed = [line.split()[1] for line in said.splitlines() if line.startswith(("Purg ", "Remv "))]
        if needing := sorted(set(removed) - set(packages)):
            raise Refused(
                f"the packages {', '.join(needing)}, which fltestbed did not install, need some that it did "
                f"({', '.join(packages)}). Remove the former, and run this again"
            )

    def stop_engine(self):
        """Stop the engine that fltestbed installed."""
        self.stop_detached_engine()
        for unit in testbed_record.ENGINE_UNITS:
            if self.run("systemctl", "is-active", unit)[1].strip() in ("active", "activating", "failed"):
                self.change(f"stop {unit}", "systemctl", "stop", unit)
                if not self.module.check_mode:
                    self.run("systemctl", "reset-failed", unit)

    def stop_detached_engine(self):
        """Stop an engine that fltestbed started without systemd."""
        if PID_FILE.exists():
            options = ["--oknodo", "--name=dockerd", "--retry=TERM/30/KILL/5", "--remove-pidfile"]
            self.change("stop dockerd", "start-stop-daemon", "--stop", f"--pidfile={PID_FILE}", *options)
        self.remove_path(str(ENGINE_LOG))

    def clean_network(self):
        """Remove the engine's bridge, chains and rules; put policies back."""
        if Path("/sys/class/net/docker0").exists():
            self.change("remove the bridge docker0", "ip", "link", "delete", "docker0")
        for program in ("iptables", "ip6tables"):
            saved = self.run(f"{program}-save")[1]
            self.clean_firewall(program, saved, self.record["before"]["chains"].get(program, {}))

    def clean_firewall(self, program, saved, before):
        now = testbed_record.chains(saved)
        chains = [name.split() for name in now if DOCKER_CHAIN.fullmatch(name.split()[1]) and name not in before]
        table = ""
        for line in saved.splitlines():
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith("-A ") and DOCKER_RULE.search(line) and [table, line.split()[1]] not in chains:
                rule = shlex.split(line)[1:]
                self.change(f"remove from {program}: {' '.join(rule)}", program, "-w", "-t", table, "-D", *rule)
        for action in ("-F", "-X"):
            for table, chain in chains:
                self.change(f"{program} {action} {chain}", program, "-w", "-t", table, action, chain)
        was = before.get(FORWARD, "ACCEPT")
        if now.get(FORWARD, was) != was:
            table, chain = FORWARD.split()
            self.change(f"put the policy of {program}'s {chain} back", program, "-w", "-t", table, "-P", chain, was)

    def purge_packages(self):
        packages = self.known_packages()
        if packages:
            options = ["-o", "APT::Get::AutomaticRemove=false", "-o", "DPkg::Lock::Timeout=300"]
            self.change(f"purge {' '.join(packages)}", "apt-get", "--yes", *options, "purge", *packages)

    def put_back_settings(self):
        for name, before in self.record["before"]["settings"].items():
            now = testbed_record.setting(name)
            if before is not None and now is not None and now != before:
                self.change_file(f"set {name} back to {before}", (Path("/proc/sys") / name).write_text, before)

    def put_back_daemon_json(self):
        """Put the engine's options back, keeping what the user changed since, and restart an engine that stays."""
        path, before, merged = (
            testbed_record.DAEMON_JSON,
            self.record["before"]["daemon_json"],
            self.record["daemon_options"],
        )
        old = json.loads(before["content"] or "{}") if before else {}
        if path.exists():
            now = json.loads(path.read_text() or "{}")
            left = without(now, merged, old)
            if left == now and (before or not merged):
                return
        elif before and self.engine_is_ours:
            left = old  # it went with the packages
        else:
            return
        if not left and before is None:
            self.remove_path(str(path))
        else:
            content = before["content"] if before and left == old else json.dumps(left, indent=4) + "\n"
            self.change_file(f"put {path} back", self.write_daemon_json, content, before["mode"] if before else 0o644)
        if not self.engine_is_ours and self.run("systemctl", "is-active", "docker.service")[1].strip() == "active":
            if not self.module.check_mode:
                self.run("systemctl", "reset-failed", "docker.service")  # systemd refuses the fourth start in a minute
            self.change("restart the engine", "systemctl", "restart", "docker.service")

    def write_daemon_json(self, content, mode):
        path = testbed_record.DAEMON_JSON
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(mode)

    def put_back_units(self):
        """Stop and disable what was off before."""
        self.stop_detached_engine()
        for unit, before in self.record["before"]["units"].items():
            if not before["enabled"] and self.run("systemctl", "is-enabled", unit)[1].strip() == "enabled":
                self.change(f"disable {unit}", "systemctl", "disable", unit)
            if not before["active"] and self.run("systemctl", "is-active", unit)[1].strip() == "active":
                self.change(f"stop {unit}", "systemctl", "stop", unit)

    def remove_images(self):
        """Remove our images from an engine that stays. One that somebody else's container uses loses its name alone."""
        for image in self.record["images"]:
            if self.engine and self.run("docker", "image", "inspect", image)[0] == 0:
                self.change(f"remove the image {image}", "docker", "image", "rm", "--force", image)


def main():
    module = AnsibleModule(
        argument_spec={
            "testbed": {"type": "str", "required": True},
            "project": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "path", "required": True},
            "owner": {"type": "str", "required": True},
            "force": {"type": "bool", "default": False},
            "purge": {"type": "bool", "default": False},
            "record": {"type": "dict"},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    undo, others = None, []
    try:
        undo = Undo(module)
        undo.remove_testbed()
        if module.params["purge"]:
            others = undo.purge()
    except (Refused, ConditionRefused, OSError, ValueError) as error:
        module.fail_json(msg=str(error), done=undo.done if undo else [])
    after = "".join(f"{line}\n" for line in undo.done)
    module.exit_json(changed=bool(undo.done), done=undo.done, testbeds=others, diff={"before": "", "after": after})


if __name__ == "__main__":
    main()
