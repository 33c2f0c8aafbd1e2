"""The record of what a host was before the first ``up``, and of what fltestbed did to it since."""

from __future__ import annotations

import json
import os
from pathlib import Path

RECORD = Path("/var/lib/fltestbed/record.json")
DAEMON_JSON = Path("/etc/docker/daemon.json")
MACHINE_ID = Path("/etc/machine-id")
ENGINE_PACKAGES = ("docker.io", "docker-ce")
ENGINE_UNITS = ("docker.socket", "docker.service", "containerd.service")
# What the engine makes of its own accord, and its packages do not remove.
ENGINE_PATHS = (
    "/etc/cni",
    "/etc/docker",
    "/etc/containerd",
    "/opt/cni",
    "/opt/containerd",
    str(Path("~root/.docker").expanduser()),  # its client's
    "/run/containerd",
    "/run/docker",
    "/run/docker.sock",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/docker",
)
SETTINGS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)


def read():
    """Return the host's record, None where there is none."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else None


def write(record):
    """Write the record whole, for root alone, and on the disk before anything that it describes is changed."""
    RECORD.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = RECORD.with_suffix(".new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(record, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(RECORD)


def testbeds():
    """Return the names of the testbeds on this host; none for a user who may not read the record."""
    try:
        return sorted((read() or {"testbeds": []})["testbeds"])
    except PermissionError:
        return []


def machine():
    """Return what tells this system from another under the same name."""
    return MACHINE_ID.read_text().strip() if MACHINE_ID.exists() else ""


def state_of(path):
    """Return ``absent``, ``empty`` (a folder without files) or ``there``."""
    path = Path(path)
    if not os.path.lexists(path):
        return "absent"
    return "empty" if path.is_dir() and not path.is_symlink() and not any(path.iterdir()) else "there"


def mode_of(path):
    """Return a path's permissions, None where there is none."""
    return os.lstat(path).st_mode & 0o7777 if os.path.lexists(path) else None


def setting(name):
    """Return the value of a kernel setting, None where the kernel has none of that name."""
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else None


def chains(saved):
    """Return the chains in the output of ``iptables-save`` with their policies, ``-`` for those that have none.

    As in ``{"filter FORWARD": "DROP", "nat DOCKER": "-"}``.
    """
    found, table = {}, ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            found[f"{table} {chain}"] = policy
    return found
