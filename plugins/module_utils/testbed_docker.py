"""A reader of the Docker engine's API on its local socket: cheaper than a start of the client for every question."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import quote

SOCKET = "/var/run/docker.sock"


class EngineUnreachable(Exception):
    """No engine answers on the socket."""


class _SocketConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def get(path, timeout=30):
    """Return the decoded JSON answer to ``GET path``; None for 404. Raises EngineUnreachable and ValueError."""
    return _ask("GET", path, None, timeout)


def post(path, content=None, timeout=30):
    """Return the decoded JSON answer to ``POST path``; None for 404 and where there is none. Raises as `get` does."""
    return _ask("POST", path, content, timeout)


def _ask(method, path, content, timeout):
    connection = _SocketConnection("localhost", timeout=timeout)
    body = None if content is None else json.dumps(content)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        answer = response.read()
    except OSError as error:
        raise EngineUnreachable(f"no Docker engine answers on {SOCKET}: {error}") from error
    finally:
        connection.close()
    if response.status == 404:
        return None
    if response.status >= 400:
        raise ValueError(f"the Docker engine answered {response.status} to {path}: {answer.decode(errors='replace')}")
    return json.loads(answer) if answer else None


def containers(project):
    """Return the engine's records (``/containers/json``) of a Compose project's containers, stopped ones too."""
    filters = quote(json.dumps({"label": [f"com.docker.compose.project={project}"]}))
    return get(f"/containers/json?all=1&filters={filters}")


def inspect(container_id):
    """Return the engine's full record of a container."""
    return get(f"/containers/{container_id}/json")


def cgroup_limits(pid):
    """Return (cpus, memory) that the kernel enforces on a process: cores or None, bytes or None; cgroup v1 and v2.

    A kernel without the controller, as Raspberry Pi OS has it for memory, enforces nothing.
    """
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path.lstrip("/")
    root = Path("/sys/fs/cgroup")

    def read(controller, name, unlimited):
        """Return the words of a controller's file; version 2 has all files in one place."""
        try:
            return (root / controller / paths[controller] / name).read_text().split()
        except (KeyError, FileNotFoundError):
            return unlimited

    if "cpu" in paths or "memory" in paths:
        quota = int(read("cpu", "cpu.cfs_quota_us", ["-1"])[0])
        period = int(read("cpu", "cpu.cfs_period_us", ["1"])[0])
        memory = int(read("memory", "memory.limit_in_bytes", [1 << 60])[0])
        return (quota / period if quota > 0 else None), (memory if memory < 1 << 60 else None)
    quota, period = read("", "cpu.max", ["max", "1"])
    memory = read("", "memory.max", ["max"])[0]
    return (None if quota == "max" else int(quota) / int(period)), (None if memory == "max" else int(memory))
