#!/usr/bin/python
"""Notes on the host what is about to be changed there, so that it can be put back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_record
short_description: Note what a host was, before it is changed
description:
  - Called before a change outside the testbed's folder. The first call for a host notes what it was before fltestbed
    came, in C(/var/lib/fltestbed/record.json); the module M(testbed_undo) puts that back.
  - What was there already is never noted as ours. Without I(testbed), and on a host without a record, nothing is done.
  - The action plugin of this name keeps a copy on the controller, in C(hosts/HOST.json) below C(testbed_state_dir).
options:
  testbed:
    description: Testbed that comes to this host. Starts the record.
    type: str
  root:
    description: The testbed's folder, which is made, as the testbed's own, where there is none.
    type: path
  paths:
    description: Files and folders about to be made.
    type: list
    elements: path
    default: []
  folders:
    description: Folders about to be made that others may come to use. They go when nothing is left in them.
    type: list
    elements: path
    default: []
  packages:
    description: >-
      Packages about to be installed without recommended ones. Those that come with them are found by a rehearsal of
      apt-get, after an update of the package lists.
    type: list
    elements: str
    default: []
  images:
    description: Names of images that the engine is about to get.
    type: list
    elements: str
    default: []
  daemon_options:
    description: Options about to be merged into C(/etc/docker/daemon.json).
    type: dict
    default: {}
  lock_timeout:
    description: Seconds to wait for another program that holds apt's locks.
    type: int
    default: 300
author: fltestbed authors
"""

RETURN = r"""
record:
  description: The host's record as it is now, null where there is none.
  returned: always
  type: dict
"""

import copy
import os
import time
from pathlib import Path

from ansible.module_utils import testbed_record
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import EngineUnreachable, get
from ansible.module_utils.testbed_root import FILES, OWNER, is_foreign


def units(module):
    """Return, by name, whether systemd starts and runs the engine's units that it knows."""
    if module.get_bin_path("systemctl") is None:
        return {}
    found = {}
    for unit in testbed_record.ENGINE_UNITS:
        _code, enabled, _err = module.run_command(["systemctl", "is-enabled", unit])
        _code, active, _err = module.run_command(["systemctl", "is-active", unit])
        if enabled.strip() not in ("", "not-found"):
            found[unit] = {"enabled": enabled.strip() == "enabled", "active": active.strip() == "active"}
    return found


def look(module):
    """Return what the host is before the first change."""
    daemon = testbed_record.DAEMON_JSON
    firewall = {}
    for program in ("iptables", "ip6tables"):
        if module.get_bin_path(f"{program}-save", opt_dirs=["/usr/sbin"]):
            firewall[program] = testbed_record.chains(module.run_command([f"{program}-save"])[1])
    return {
        "docker": module.get_bin_path("dockerd") is not None,
        "docker_group": module.run_command(["getent", "group", "docker"])[0] == 0,
        "daemon_json": {"content": daemon.read_text(), "mode": daemon.stat().st_mode & 0o7777}
        if daemon.exists()
        else None,
        "paths": {
            path: [testbed_record.state_of(path), testbed_record.mode_of(path)] for path in testbed_record.ENGINE_PATHS
        },
        "chains": firewall,
        "settings": {name: testbed_record.setting(name) for name in testbed_record.SETTINGS},
        "units": units(module),
    }


def apt(module, *arguments):
    """Return what apt-get says, waiting for whoever holds its locks."""
    deadline = time.monotonic() + module.params["lock_timeout"]
    while True:
        code, out, err = module.run_command(
            ["apt-get", *arguments], environ_update={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        )
        if code == 0:
            return out
        if "Could not get lock" not in err or time.monotonic() > deadline:
            module.fail_json(msg=f"apt-get {' '.join(arguments)} failed: {err.strip() or out.strip()}")
        time.sleep(2)


def new_packages(module, packages):
    """Return (new, upgraded): the packages that an installation would bring, and those that it would replace."""
    apt(module, "update", "--quiet")
    said = apt(module, "install", "--simulate", "--no-install-recommends", *packages)
    rows = [line.split() for line in said.splitlines() if line.startswith("Inst ")]
    new = [row[1] for row in rows if not row[2].startswith("[")]
    return new, [row[1] for row in rows if row[2].startswith("[")]


def merged(options, more):
    """Return options of a daemon.json with more of them; mappings and lists are joined."""
    both = dict(options)
    for name, value in more.items():
        old = both.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            both[name] = merged(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            both[name] = old + [item for item in value if item not in old]
        else:
            both[name] = value
    return both


def claim(root):
    """Mark a testbed's folder before anything is brought there."""
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not is_foreign(root) and not (root / OWNER).exists() and not (root / FILES).exists():
        (root / FILES).write_text("[]")


def main():
    os.umask(0o022)  # what runs in containers as another user reads the folder too
    module = AnsibleModule(
        argument_spec={
            "testbed": {"type": "str"},
            "root": {"type": "path"},
            "paths": {"type": "list", "elements": "path", "default": []},
            "folders": {"type": "list", "elements": "path", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "images": {"type": "list", "elements": "str", "default": []},
            "daemon_options": {"type": "dict", "default": {}},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        before = testbed_record.read()
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"{testbed_record.RECORD} can't be read: {error}. It says how to put this host back: restore it from "
            "its copy in .fltestbed/TESTBED/hosts/ on the controller"
        )
    if (before is None and params["testbed"] is None) or module.check_mode:
        module.exit_json(changed=before is None and params["testbed"] is not None, record=before)

    record = copy.deepcopy(before) or {
        "machine": testbed_record.machine(),
        "before": look(module),
        "testbeds": [],
        "paths": [],
        "folders": [],
        "packages": [],
        "upgraded": [],
        "images": [],
        "daemon_options": {},
    }
    if params["testbed"] and params["testbed"] not in record["testbeds"]:
        record["testbeds"].append(params["testbed"])
    for kind in ("paths", "folders"):
        made = [path for path in params[kind] if testbed_record.state_of(path) == "absent"]
        record[kind] += [path for path in made if path not in record[kind]]
    if params["packages"]:
        for name, found in zip(("packages", "upgraded"), new_packages(module, params["packages"])):
            record[name] += [package for package in found if package not in record[name]]
    for image in params["images"]:
        try:
            there = image in record["images"] or get(f"/images/{image}/json") is not None
        except EngineUnreachable:
            there = False
        if not there:
            record["images"].append(image)
    record["daemon_options"] = merged(record["daemon_options"], params["daemon_options"])
    if record != before:
        testbed_record.write(record)
    if params["root"]:
        claim(Path(params["root"]))
    module.exit_json(changed=record != before, record=record)


if __name__ == "__main__":
    main()
