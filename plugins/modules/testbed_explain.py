#!/usr/bin/python
"""Finds out why a host's containers do not run, when Compose has failed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_explain
short_description: Say why Compose failed
description:
  - Looks at what Compose's error hints at - a port with its holder, free space, the engine, the last words of a
    container that does not run - and always fails, with that.
options:
  root:
    description: The testbed's folder on the host.
    type: path
    required: true
  project:
    description: The Compose project.
    type: str
    required: true
  said:
    description: What Compose said.
    type: str
    required: true
author: fltestbed authors
"""

RETURN = r"""
msg:
  description: What is in the way, and what to do.
  returned: always
  type: str
"""

import re
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import EngineUnreachable, containers, get, inspect
from ansible.module_utils.testbed_holders import port_holder
from ansible.module_utils.testbed_host import places

PORT = re.compile(r":(\d+) failed|listen tcp4? \S*:(\d+)|exposing port TCP \S+:(\d+) ")


def taken_port(said, project):
    """Return who has the port that Compose could not get; None if it is not about a port."""
    found = PORT.search(said)
    if not found or not re.search(r"already allocated|already in use", said):
        return None
    port = int(next(number for number in found.groups() if number))
    who, other = port_holder(port) or ("a program that has ended meanwhile", "")
    if other.startswith("fltestbed-") and other != project:
        return (
            f"port {port}/tcp is held by {who}: the testbed {other.removeprefix('fltestbed-')} has this server too. "
            "Give one of the two other ports in its inventory (testbed_fleet_port, testbed_registry_port), or take the "
            "other down"
        )
    return (
        f"port {port}/tcp is held by {who}. Stop that, or give the testbed other ports in the inventory "
        "(testbed_fleet_port, testbed_registry_port)"
    )


def full_disk(said, root):
    if "no space left on device" not in said.lower():
        return None
    try:
        engine = places({}, get("/info"))
    except EngineUnreachable:
        engine = places({}, {})
    folders = [path for path in (engine["folder"], engine["image_folder"], root) if Path(path).exists()]
    free = {path: shutil.disk_usage(path).free // 2**20 for path in folders}
    return (
        f"the disk is full: {', '.join(f'{megabytes} MB are free at {path}' for path, megabytes in free.items())}. "
        "Free some space; docker system df shows what Docker holds"
    )


def silent_engine():
    done = (
        subprocess.run(["systemctl", "is-active", "docker.service"], capture_output=True, text=True, check=False)
        if shutil.which("systemctl")
        else None
    )
    state = f" (systemd says {done.stdout.strip()})" if done and done.stdout else ""
    return f"the Docker engine does not answer{state}. systemctl start docker; journalctl --unit docker says why"


def troubled(project):
    """Return the state and the last words of each container that does not run as it shall."""
    found = []
    for row in containers(project):
        state = inspect(row["Id"])["State"]
        health = state.get("Health", {}).get("Status", "healthy")
        if state["Status"] == "running" and health == "healthy":
            continue
        name = row["Names"][0].lstrip("/")
        logs = subprocess.run(
            ["docker", "logs", "--tail=5", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        ).stdout
        words = state["Error"] or logs.decode(errors="replace").strip() or "nothing"
        condition = health if state["Status"] == "running" else f"{state['Status']}, exit code {state['ExitCode']}"
        found.append(f"the container {name} is {condition}; its last words: {words}")
    return found


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "project": {"type": "str", "required": True},
            "said": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    said, project = module.params["said"], module.params["project"]
    reason = taken_port(said, project) or full_disk(said, module.params["root"])
    if not reason:
        try:
            reason = "\n".join([said, *troubled(project)])
        except EngineUnreachable:
            reason = silent_engine()
    module.fail_json(msg=reason)


if __name__ == "__main__":
    main()
