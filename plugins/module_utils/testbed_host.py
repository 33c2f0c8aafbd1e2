"""What a host is: operating system, control groups, Docker engine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.testbed_docker import EngineUnreachable, get

DAEMON_JSON = Path("/etc/docker/daemon.json")
OWN_CONTAINERD = Path("/run/docker/containerd/containerd.sock")  # of an engine that starts containerd by itself
BOOT_LINK = Path("/etc/systemd/system/multi-user.target.wants/docker.service")


def operating_system():
    release = {}
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _equals, value = line.partition("=")
        release[key] = value.strip('"')
    return {
        "id": release.get("ID", ""),
        "version": release.get("VERSION_ID", ""),
        "codename": release.get("VERSION_CODENAME", ""),
        "name": release.get("PRETTY_NAME", ""),
    }


def program_version(*command):
    """Return the first line that a program prints, None where it is missing or refuses."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def cgroup():
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
        return {"version": 2, "memory": "memory" in controllers, "cpu": "cpu" in controllers}
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines() if not line.startswith("#")]
    enabled = {name for name, _hierarchy, _groups, on in rows if on == "1"}
    return {"version": 1, "memory": "memory" in enabled, "cpu": "cpu" in enabled}


def places(options, info):
    """Return where an engine keeps its data, and where its images, and the socket of its containerd.

    `options` are those of its daemon.json, `info` is what it says of itself: nothing where none runs.
    """
    folder = info.get("DockerRootDir") or options.get("data-root") or "/var/lib/docker"
    socket = (info.get("Containerd") or {}).get("Address")
    if not socket:
        socket = str(OWN_CONTAINERD) if OWN_CONTAINERD.exists() else "/run/containerd/containerd.sock"
    in_containerd = any("io.containerd.snapshotter" in value for _key, value in info.get("DriverStatus") or [])
    if in_containerd and "/docker/" not in socket:  # else that containerd keeps them below the engine's folder
        return {"folder": folder, "image_folder": "/var/lib/containerd", "containerd": socket}
    return {"folder": folder, "image_folder": folder, "containerd": socket}


def docker():
    facts = {"version": None, "compose": None, "running": False, "on_boot": BOOT_LINK.exists(), "daemon_json": None}
    if DAEMON_JSON.exists():
        text = DAEMON_JSON.read_text()
        facts["daemon_json"] = json.loads(text) if text.strip() else {}
    images, info = {}, {}
    try:
        info = get("/info")
        facts["version"] = info["ServerVersion"]
        facts["running"] = True
        for image in get("/images/json"):
            for tag in image["RepoTags"] or []:
                images[tag] = image["Id"]
    except EngineUnreachable:
        text = program_version("dockerd", "--version")
        facts["version"] = text.split()[2].rstrip(",") if text else None
    facts["compose"] = program_version("docker", "compose", "version", "--short")
    return facts | places(facts["daemon_json"] or {}, info), images


def free_mb(path):
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 2**20
