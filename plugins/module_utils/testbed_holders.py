"""Who holds what this host has once only: a TCP port, the package manager's locks."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from ansible.module_utils.testbed_docker import EngineUnreachable, get

PACKAGE_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)


def process(pid):
    """Return a process as a person reads it."""
    try:
        return f"{(Path('/proc') / str(pid) / 'comm').read_text().strip()} (process {pid})"
    except OSError:
        return "another program"


def lock_holder(path):
    """Return the process id that has an fcntl lock on a file; 0 where it is not to be seen, None without a lock."""
    try:
        with Path(path).open("rb+") as file:
            request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _whence, _start, _length, pid = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, request))
    except OSError:
        return None  # nothing can be written there, so nobody locks it to write
    return pid if kind != fcntl.F_UNLCK else None


def port_holder(port):
    """Return (what holds a TCP port, the Compose project of that container or an empty text); None for a free one."""
    try:
        for container in get("/containers/json"):
            if port in [mapping.get("PublicPort") for mapping in container["Ports"]]:
                name = container["Names"][0].lstrip("/")
                return f"the container {name}", container["Labels"].get("com.docker.compose.project", "")
    except EngineUnreachable:
        pass
    inodes = listening().get(port)
    return (process(socket_holder(inodes)), "") if inodes else None


def listening():
    """Return the inodes of the TCP sockets that listen, by port."""
    found = {}
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(name).read_text().splitlines()[1:] if Path(name).exists() else ():
            cells = line.split()
            if cells[3] == "0A":
                found.setdefault(int(cells[1].rpartition(":")[2], 16), set()).add(cells[9])
    return found


def socket_holder(inodes):
    """Return the id of the process that has one of these sockets; 0 where it is not to be seen."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if any(str(fd.readlink()) in wanted for fd in (folder / "fd").iterdir()):
                    return int(folder.name)
            except OSError:
                continue  # it has ended
    return 0
