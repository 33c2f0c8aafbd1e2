#!/usr/bin/python
"""One look at a host: what the roles need to know before they decide that nothing is to do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_probe
short_description: Look at a host once, cheaply
description:
  - Reports operating system, init system, Docker engine, Compose, control groups, free disk and images in one call,
    so that roles can skip what is done already.
options:
  paths:
    description: Paths to look for; the answer is in C(testbed_probe.paths).
    type: list
    elements: path
    default: []
author: fltestbed authors
"""

RETURN = r"""
ansible_facts:
  description: The fact C(testbed_probe).
  returned: always
  type: dict
  contains:
    testbed_probe:
      description: >-
        C(arch); C(os) with C(id), C(version), C(codename), C(name); C(kernel); C(service_mgr); C(python); C(cpus);
          C(memory_mb);
        C(docker) with C(version) (null without an engine), C(compose) (null without Compose v2), C(running),
          C(on_boot) (systemd starts it) and C(daemon_json)
        (null without the file); C(cgroup) with C(version), C(memory), C(cpu) (whether limits work);
        C(disk_free_mb) by path; C(images), image ids by C(repository:tag);
        C(paths), whether each of I(paths) exists.
      type: dict
"""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import EngineUnreachable, get

DAEMON_JSON = Path("/etc/docker/daemon.json")
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


def docker():
    facts = {"version": None, "compose": None, "running": False, "on_boot": BOOT_LINK.exists(), "daemon_json": None}
    if DAEMON_JSON.exists():
        text = DAEMON_JSON.read_text()
        facts["daemon_json"] = json.loads(text) if text.strip() else {}
    images = {}
    try:
        facts["version"] = get("/version")["Version"]
        facts["running"] = True
        for image in get("/images/json"):
            for tag in image["RepoTags"] or []:
                images[tag] = image["Id"]
    except EngineUnreachable:
        text = program_version("dockerd", "--version")
        facts["version"] = text.split()[2].rstrip(",") if text else None
    facts["compose"] = program_version("docker", "compose", "version", "--short")
    return facts, images


def free_mb(path):
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 2**20


def main():
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "default": []}}, supports_check_mode=True
    )
    try:
        engine, images = docker()
    except ValueError as error:
        module.fail_json(
            msg=f"{DAEMON_JSON} or the engine's answer is not valid JSON: {error}. Correct it by hand: fltestbed "
            "merges into that file and never replaces it."
        )
    probe = {
        "arch": platform.machine(),
        "os": operating_system(),
        "kernel": platform.release(),
        "service_mgr": "systemd" if Path("/run/systemd/system").is_dir() else "none",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "docker": engine,
        "cgroup": cgroup(),
        "disk_free_mb": {"/var/lib/docker": free_mb(Path("/var/lib/docker"))},
        "images": images,
        "paths": {path: Path(path).exists() for path in module.params["paths"]},
    }
    module.exit_json(changed=False, ansible_facts={"testbed_probe": probe})


if __name__ == "__main__":
    main()
