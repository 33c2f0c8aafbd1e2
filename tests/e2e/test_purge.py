"""What `down --purge` leaves: hosts as before the first `up`, one that had Docker before and one that had not."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from .lab import REPOSITORY, Lab, wait_for

SUBNET = "172.29.8."
HOSTS = ("server", "owned")
INVENTORY = """
testbed:
  vars:
    docker_daemon_options: {log-opts: {max-file: "3"}, labels: [by=fltestbed]}
  children:
    superlink:
      hosts:
        server: {ansible_host: 172.29.8.10, virtual_device_cpus: 1.5, virtual_device_memory: 2g}
    supernodes:
      hosts:
        owned:
          ansible_host: 172.29.8.21
          virtual_device_cpus: 1.0
          virtual_device_memory: 2g
          testbed_clients: [{cpus: 0.8, memory: 1g}]
"""

# What a system changes of its own accord. Everything else below /etc, /opt, /usr and /var is compared, and the homes.
EXCEPTIONS = {
    r"/var/log/.*": "logs",
    r"/var/cache/.*": "caches, of apt, man-db, ldconfig and others",
    r"/var/lib/apt/(lists|periodic)(/.*)?": "the package lists and when they were read",
    r"/var/lib/dpkg/(status|available|diversions|statoverride)-old": "dpkg's copy of its state before the last change",
    r"/etc/(passwd|group|shadow|gshadow)-": "the account tools' copy of the state before the last change",
    r"/var/backups/.*": "what the packages' daily timers keep: a test that runs at midnight sees it come",
    r"/var/lib/systemd/(timers|random-seed|timesync)(/.*)?": "when timers ran, the seed, the clock",
    r"/var/tmp/systemd-private-.*": "systemd's folders for services that run now",  # noqa: S108
    r"/var/lib/(docker|containerd)/.+": "the data of an engine that stays and writes there; docker is asked instead",
    r"(/root|/home/pi)/\.ansible(/.*)?": "Ansible's own folder for its modules",
}
# The engine of the machine outside answers a virtual device's DNS queries by rules inside it.
OUTSIDE = re.compile(r"127\.0\.0\.11|DOCKER_OUTPUT|DOCKER_POSTROUTING")

SNAPSHOT = r"""
import hashlib, json, os, stat, subprocess
from pathlib import Path

def lines(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []

files = {}
for top in ("/etc", "/opt", "/usr", "/var", "/root", "/home"):
    for folder, folders, names in os.walk(top):
        if folder in ("/var/lib/docker", "/var/lib/containerd"):
            folders.clear()
        for name in folders + names:
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            files[str(path)] = f"{status.st_mode:o} {status.st_uid} {status.st_gid} {content}"
print(json.dumps({
    "files": files,
    "packages": lines("dpkg-query", "--show", "--showformat=${binary:Package} ${Version} ${db:Status-Abbrev}\n"),
    "marked manual": sorted(lines("apt-mark", "showmanual")),
    "users": Path("/etc/passwd").read_text().splitlines(),
    "groups": Path("/etc/group").read_text().splitlines(),
    "iptables": lines("iptables-save"),
    "ip6tables": lines("ip6tables-save"),
    "unit files": lines("systemctl", "list-unit-files", "--no-legend", "--no-pager"),
    "services": lines("systemctl", "list-units", "--type=service,socket", "--state=active", "--plain", "--no-legend"),
    "links": sorted(row["ifname"] for row in json.loads("".join(lines("ip", "-json", "link")))),
    "settings": {
        name: Path("/proc/sys/net", name).read_text()
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "bridge/bridge-nf-call-iptables")
        if Path("/proc/sys/net", name).exists()
    },
    "docker": [
        lines("docker", *what, "--no-trunc", "--format", "{{json .}}")
        for what in (["image", "ls", "--all"], ["container", "ls", "--all"])
    ],
    "docker networks": lines("docker", "network", "ls", "--format", "{{.Name}} {{.Driver}}"),
    "docker volumes": lines("docker", "volume", "ls", "--quiet"),
    "docker labels": lines("docker", "info", "--format", "{{json .Labels}}"),
}))
"""


def firewall(saved: list[str]) -> list[str]:
    """Return the rules and policies in the output of iptables-save that differ from an empty firewall's."""
    found, table = [], ""
    for line in saved:
        if line.startswith("*"):
            table = line
        elif line[:1] in (":", "-") and not OUTSIDE.search(line):
            text = line.partition(" [")[0]
            if not re.fullmatch(r":[A-Z]+ ACCEPT", text):
                found.append(f"{table} {text}")
    return sorted(found)


def snapshot(lab: Lab, device: str) -> dict[str, Any]:
    """Return what a device is, without EXCEPTIONS and what changes as time goes by."""
    found: dict[str, Any] = json.loads(lab.on(device, "python3", "-c", SNAPSHOT))
    excepted = re.compile("|".join(EXCEPTIONS))
    found["files"] = {path: what for path, what in found["files"].items() if not excepted.fullmatch(path)}
    for program in ("iptables", "ip6tables"):
        found[program] = firewall(found[program])
    # A logged-in user has services of its own; a service's row ends with its description.
    found["services"] = sorted(row.split()[0] for row in found["services"] if not row.startswith(("user@", "user-")))
    found["docker"] = [
        sorted(re.sub(r'"(CreatedSince|RunningFor|Status|CreatedAt)":"[^"]*",?', "", row) for row in rows)
        for rows in found["docker"]
    ]
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what is not equal, with both sides: empty if all is."""
    found: dict[str, Any] = {}
    for part in before:
        if before[part] != after[part]:
            if isinstance(before[part], dict):
                names = [
                    name for name in {**before[part], **after[part]} if before[part].get(name) != after[part].get(name)
                ]
                found[part] = {name: (before[part].get(name), after[part].get(name)) for name in sorted(names)}
            else:
                found[part] = (
                    [row for row in before[part] if row not in after[part]],
                    [row for row in after[part] if row not in before[part]],
                )
    return found


@pytest.fixture(scope="module")
def purge_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server without an engine, a device with one of its owner's; a second testbed on the same hosts."""
    lab = Lab(tmp_path_factory.mktemp("purge"), "purge")
    shutil.copytree(REPOSITORY / "inventories" / "virtual", lab.inventory)
    (lab.inventory / "hosts.yml").write_text(INVENTORY)
    variables = lab.inventory / "group_vars" / "testbed.yml"
    text = variables.read_text().replace("172.28.1.", SUBNET)
    text = text.replace("{{ inventory_dir | basename }}", lab.name)  # the second one has the same hosts, and their keys
    variables.write_text(re.sub(r"^virtual_device_packages:.*$", "", text, flags=re.MULTILINE))
    shutil.copytree(lab.inventory, lab.inventory.with_name("second"))
    try:
        lab.run("lab", "up")
        install = "apt-get update -qq && apt-get install -qq --yes --no-install-recommends docker.io docker-cli"
        lab.on("owned", "sh", "-c", f"{install} && mkdir -p /etc/docker", seconds=900)
        lab.on("owned", "sh", "-c", """echo '{"labels":["owner=user"], "debug": false}' > /etc/docker/daemon.json""")
        lab.on("owned", "systemctl", "restart", "docker")
        lab.on("owned", "sh", "-c", "tar --create --file=- /etc/hostname | docker import - theirs:1")
        lab.on("owned", "docker", "volume", "create", "theirs")
        yield lab
    finally:
        subprocess.run(lab.command("lab", "down"), cwd=lab.folder, env=lab.environment(), check=True, timeout=300)


@pytest.fixture(scope="module")
def before(purge_lab: Lab) -> dict[str, dict[str, Any]]:
    """What both devices were before the first `up`."""
    found = {host: snapshot(purge_lab, host) for host in HOSTS}
    assert "docker.io" not in " ".join(found["server"]["packages"])
    assert "docker.io" in " ".join(found["owned"]["packages"])
    return found


def ended(lab: Lab, *arguments: str, code: int) -> str:
    """Return all that a command says which ends with this exit code."""
    process = lab.start(*arguments)
    try:
        said = process.communicate(timeout=600)[0]
    finally:
        process.kill()
    assert process.returncode == code, said
    return said


def fresh_plan(lab: Lab) -> dict[str, Any]:
    """Return what `plan` says where nothing was built or deployed yet."""
    done = subprocess.run(
        lab.command("plan", "--format", "json"),
        cwd=lab.folder,
        env=lab.environment() | {"XDG_CACHE_HOME": str(lab.folder / "no-cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def records(lab: Lab) -> dict[str, Any]:
    """Return the controller's copies of the hosts' records."""
    folder = lab.folder / ".fltestbed" / lab.name / "hosts"
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_an_interrupted_up_and_a_second_testbed_are_undone(purge_lab: Lab, before: dict[str, dict[str, Any]]) -> None:
    lab, second = purge_lab, Lab(purge_lab.folder, "second")
    planned = fresh_plan(lab)
    assert all("compose.yml" in {row["name"] for row in rows} for rows in planned.values()), planned
    assert "docker.io" in {row["name"] for row in planned["server"]}
    begun = lab.start("up")
    try:
        running = ["sh", "-c", "systemctl is-active docker && docker compose version"]
        wait_for("the engine on the server", lambda: "Compose" in lab.on("server", *running, code=None), 900)
        begun.send_signal(signal.SIGINT)
        said = begun.communicate(timeout=60)[0]
    finally:
        begun.kill()
    assert begun.returncode == 130, said
    held = records(lab)
    assert "docker.io" in held["server"]["packages"] and "docker.io" not in held["owned"]["packages"]
    assert held["server"] == json.loads(lab.on("server", "cat", "/var/lib/fltestbed/record.json"))

    # A second testbed comes as far as the engine, then the first one goes: the engine stays.
    second.run("up", "--tags", "docker")
    assert "by=fltestbed" in lab.on("owned", "cat", "/etc/docker/daemon.json")
    assert "settings stay for second" in ended(lab, "down", "--purge", "--yes", code=0)
    assert records(lab) == {}
    assert lab.on("server", "systemctl", "is-active", "docker").strip() == "active"
    assert records(second)["server"]["packages"] == held["server"]["packages"]
    second.run("down", "--purge", "--yes")
    for host in HOSTS:
        assert differences(before[host], snapshot(lab, host)) == {}, host


def test_a_purge_leaves_the_hosts_as_they_were(purge_lab: Lab, before: dict[str, dict[str, Any]]) -> None:
    lab = purge_lab
    lab.run("up")
    assert all(record["images"] for record in records(lab).values())

    # An engine that others use by now is kept, and they are named.
    lab.on("server", "docker", "volume", "create", "somebodys")
    assert "volume somebodys" in ended(lab, "down", "--purge", "--yes", "--limit", "server", code=5)
    lab.on("server", "docker", "volume", "rm", "somebodys")

    # A device that is off does not keep the others: what is left there is said, and done later.
    outside = f"{lab.name}-owned"
    subprocess.run(["docker", "pause", outside], check=True, capture_output=True, timeout=60)
    try:
        said = ended(lab, "down", "--purge", "--yes", code=6)
    finally:
        subprocess.run(["docker", "unpause", outside], check=True, capture_output=True, timeout=60)
    assert "owned: " in said and "docker-compose" in said and "down --purge -i purge" in said
    assert differences(before["server"], snapshot(lab, "server")) == {}
    lab.run("down", "--purge", "--yes")
    for host in HOSTS:
        assert differences(before[host], snapshot(lab, host)) == {}, host
    assert records(lab) == {}
    lab.run("down", "--purge", "--yes")
