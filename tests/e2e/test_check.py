"""fltestbed check: nothing to say of a lab in order, and every planted defect found, each with what to do."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import yaml

from .lab import DEVICES, SUBNET, Lab

# Hosts that only exist in the inventory `broken`: further addresses of the server, and what is wrong with each.
GHOSTS: dict[str, dict[str, Any]] = {
    "no-name": {"ansible_host": "no-such-host.invalid"},
    "silent": {"ansible_host": f"{SUBNET}99"},
    "refusing": {"ansible_host": f"{SUBNET}42", "ansible_port": 23},
    "unknown-key": {"ansible_host": f"{SUBNET}43"},
    "changed-key": {"ansible_host": f"{SUBNET}44"},
    "wrong-user": {"ansible_host": f"{SUBNET}45", "ansible_user": "stranger"},
    "no-sudo": {"ansible_host": f"{SUBNET}46", "ansible_user": "guest"},
    "no-python": {"ansible_host": f"{SUBNET}47", "ansible_python_interpreter": "/usr/bin/python9"},
    "twin": {"ansible_host": f"{SUBNET}48"},
}
EXPECTED = {
    ("error", "no-name", "SSH", "cannot be resolved"),
    ("error", "silent", "SSH", "does not answer"),
    ("error", "refusing", "SSH", "refuses SSH"),
    ("error", "unknown-key", "SSH host key", "is not known"),
    ("error", "changed-key", "SSH host key", "another SSH host key"),
    ("error", "wrong-user", "SSH permission", "lets nobody in"),
    ("error", "no-sudo", "sudo", "cannot become root"),
    ("error", "no-python", "Python", "no Python"),
    ("error", "twin", "identity", "the same machine"),
    ("error", "server", "ports", "published by the container fltestbed-e2e-proxy-1"),
    ("error", "server", "ports", "held by python3"),
    ("error", "server", "ports", "port 9100/tcp is held by"),
    ("warning", "server", "names", "no-such-host.invalid"),
    ("error", "pi-3", "control groups", "memory controller is off"),
    ("error", "pi-3", "disk", "MB are needed"),
    ("error", "pi-4", "CPU", "512 cores"),
    ("error", "pi-4", "memory", "memory limits are"),
    ("warning", "pi-4", "memory", "limited to 300 MB"),
    ("error", "pi-4", "packages", "dpkg was interrupted"),
    ("warning", "pi-4", "packages", "holds the package lock"),
    ("error", "pi-4", "packages", "http://127.0.0.1:9 cannot be reached"),
    ("error", "laptop", "clock", "ahead of the server's"),
    ("error", "laptop", "Docker", "not valid JSON"),
    ("error", "laptop", "server", "does not answer on port 9192/tcp"),
    ("warning", "laptop", "leftovers", "old-client"),
    ("warning", "laptop", "identity", "call themselves pi-4"),
}

# What makes each defect, and what takes it away again. A virtual device has no clock of its own: its `date` lies.
PLANTS = {
    "server": [
        ("systemd-run --quiet --unit=squatter python3 -m http.server 5055", "systemctl stop squatter"),
        ("until (exec 3<>/dev/tcp/127.0.0.1/5055) 2>/dev/null; do sleep 0.2; done", "true"),
        (
            f"for last in 42 43 44 45 46 47 48; do ip address add {SUBNET}$last/24 dev eth0; done",
            f"for last in 42 43 44 45 46 47 48; do ip address delete {SUBNET}$last/24 dev eth0; done",
        ),
        (
            "useradd --create-home guest && cp -r ~pi/.ssh ~guest/ && chown -R guest: ~guest/.ssh",
            "pkill -KILL -u guest; userdel --remove guest",
        ),
    ],
    "pi-3": [
        (
            "kernel=/sys/fs/cgroup/cgroup.controllers; [ -e $kernel ] || kernel=/proc/cgroups;"
            r" sed 's/^\(memory\s.*\)1$/\10/; s/\bmemory //' $kernel >/root/controllers;"
            " mount --bind /root/controllers $kernel",
            "umount /proc/cgroups || umount /sys/fs/cgroup/cgroup.controllers",
        ),
        ("mkdir -p /boot/firmware && echo root=here rootwait >/boot/firmware/cmdline.txt", "rm -r /boot/firmware"),
        (
            "mkdir -p /opt/fltestbed/broken && mount -t tmpfs -o size=50m tmpfs /opt/fltestbed/broken",
            "umount /opt/fltestbed/broken; rmdir /opt/fltestbed/broken",
        ),
    ],
    "pi-4": [
        (
            "cd /usr/libexec/docker/cli-plugins && mv docker-compose /root/",
            "mv /root/docker-compose /usr/libexec/docker/cli-plugins/",
        ),
        (
            "mv /etc/apt/sources.list /root/; echo 'deb http://127.0.0.1:9/debian stable main' >/etc/apt/sources.list",
            "mv /root/sources.list /etc/apt/",
        ),
        ("touch /var/lib/dpkg/updates/0001", "rm /var/lib/dpkg/updates/0001"),
        (
            "systemd-run --quiet --unit=upgrade python3 -c '"
            'import fcntl, time; lock = open("/var/lib/dpkg/lock-frontend", "a"); fcntl.lockf(lock, fcntl.LOCK_EX);'
            ' open("/run/held", "w"); time.sleep(3600)\'; until [ -e /run/held ]; do sleep 0.2; done',
            "systemctl stop upgrade; rm /run/held",
        ),
    ],
    "laptop": [
        (
            "cd /usr/bin && mv date date-right && printf '#!/bin/sh\\nexec date-right -d +20sec \"$@\"\\n' >date;"
            " chmod +x date",
            "mv /usr/bin/date-right /usr/bin/date",
        ),
        (
            "mkdir -p /etc/docker; cd /etc/docker; [ -e daemon.json ] && mv daemon.json /root/; echo '{,' >daemon.json",
            "rm /etc/docker/daemon.json; mv /root/daemon.json /etc/docker/",
        ),
        (
            f"iptables -I OUTPUT -p tcp -d {SUBNET}10 --dport 9192 -j DROP",
            f"iptables -D OUTPUT -p tcp -d {SUBNET}10 --dport 9192 -j DROP",
        ),
        (
            "tar c --files-from /dev/null | docker import - nothing;"
            " docker create --name old-client --label com.docker.compose.project=fltestbed-old"
            " --label com.docker.compose.project.working_dir=/opt/fltestbed/old"
            " nothing true",
            "docker rm --force old-client; docker rmi nothing",
        ),
        ("hostname pi-4", "hostname laptop"),
    ],
}


class Broken(Lab):
    """The lab's devices, seen through an inventory of their own."""

    def command(self, *arguments: str) -> list[str]:
        return [*super().command(*arguments)[:-1], "broken"]


@contextmanager
def defects(lab: Lab) -> Iterator[Lab]:
    """Plant everything; take it all away at the end."""
    folder = lab.inventory.with_name("broken")
    known = (lab.folder / ".fltestbed/e2e/ssh/known_hosts").read_text().splitlines()
    keys = {address: key for address, _, key in (line.partition(" ") for line in known)}
    aliases = {SUBNET + last: keys[f"{SUBNET}10"] for last in ("42", "45", "46", "47", "48")}
    aliases[f"{SUBNET}44"] = keys[f"{SUBNET}21"]
    with ExitStack() as undo:
        shutil.copytree(lab.inventory, folder)
        undo.callback(shutil.rmtree, folder)
        shared = folder / "group_vars/testbed.yml"
        settings = {
            key: value
            for key, value in yaml.safe_load(shared.read_text()).items()
            if not key.startswith("virtual_device")
        }
        own = "{{ inventory_dir | basename }}"
        common = settings["ansible_ssh_common_args"].replace(f"{own}/ssh/known_hosts", "known_hosts-of-broken")
        key = settings["ansible_ssh_private_key_file"].replace(own, lab.inventory.name)
        settings |= {"ansible_ssh_common_args": common, "ansible_ssh_private_key_file": key}
        settings |= {"testbed_fleet_port": 9192, "testbed_registry_port": 5055, "check_bind": [], "check_cadvisor": {}}
        settings["ansible_timeout"] = 60  # many logins at once, on a machine that may be busy
        shared.write_text(yaml.safe_dump(settings))
        hosts = yaml.safe_load((folder / "hosts.yml").read_text())
        groups = hosts["testbed"]["children"]
        groups["superlink"]["hosts"]["server"] |= {"check_serve": [9192, 5055, 9092], "check_bind": [9100]}
        groups["supernodes"]["hosts"] |= GHOSTS
        groups["supernodes"]["hosts"]["pi-4"]["testbed_clients"] = [{"cpus": 512, "memory": "300m"}, {"memory": "900g"}]
        (folder / "hosts.yml").write_text(yaml.safe_dump(hosts))
        lines = [*known, *(f"{address} {key}" for address, key in aliases.items())]
        (lab.folder / ".fltestbed/known_hosts-of-broken").write_text("\n".join(lines) + "\n")
        for device, plants in PLANTS.items():
            for make, remove in plants:
                undo.callback(lab.on, device, "bash", "-c", remove, code=None)
                lab.on(device, "bash", "-c", make)
        yield Broken(lab.folder)


def test_a_lab_in_order_is_no_alarm(lab: Lab) -> None:
    said = json.loads(lab.run("check", "--format", "json"))
    assert said["findings"] == []
    assert {row["host"] for row in said["hosts"]} == {"server", *DEVICES}
    for row in said["hosts"]:
        done, _, of = row["fine"].partition(" of ")
        assert done == of and int(of) >= 14
        assert row["clock_seconds"] is not None


def test_planted_defects_are_found_and_the_safe_ones_mended(lab: Lab) -> None:
    with defects(lab) as broken:
        found = json.loads(broken.run("check", "--format", "json", code=4))["findings"]
        print(json.dumps(found, indent=1))
        unmatched = list(found)
        for severity, host, where, fragment in sorted(EXPECTED):
            matching = [
                row
                for row in unmatched
                if (row["severity"], row["host"], row["where"]) == (severity, host, where) and fragment in row["what"]
            ]
            assert len(matching) == 1, (severity, host, where, fragment)
            assert matching[0]["fix"]
            unmatched.remove(matching[0])
        assert unmatched == []
        assert ":9192 " not in lab.on("server", "ss", "--listening", "--tcp", "--numeric"), "opened for the check alone"
        assert {(row["host"], row["where"]) for row in found if row["safe"]} == {
            ("pi-3", "control groups"),
            ("laptop", "leftovers"),
        }

        said = broken.run("check", "--fix", "--yes", "--limit", "pi-3,laptop", code=4)
        assert "old-client" not in said
        assert "has it on from the next start" in said
        line = lab.on("pi-3", "cat", "/boot/firmware/cmdline.txt")
        assert line == "root=here rootwait cgroup_enable=memory cgroup_memory=1\n"
        assert lab.on("pi-3", "cat", "/boot/firmware/cmdline.txt.before-fltestbed") == "root=here rootwait\n"
        assert "old-client" not in lab.on("laptop", "docker", "ps", "--all")
    assert json.loads(lab.run("check", "--format", "json"))["findings"] == []


def test_an_inventory_with_an_error_reaches_no_host(lab: Lab) -> None:
    hosts = lab.inventory / "hosts.yml"
    right = hosts.read_text()
    logs = set((lab.folder / ".fltestbed/e2e/logs").iterdir())
    hosts.write_text(right.replace("memory: 640m", "memory: 2gg"))
    try:
        said = json.loads(lab.run("check", "--format", "json", code=3))
    finally:
        hosts.write_text(right)
    assert ["2gg" in row["what"] for row in said["findings"]] == [True]
    assert set((lab.folder / ".fltestbed/e2e/logs").iterdir()) == logs
