#!/usr/bin/python
"""Compares a host with what the last whole deployment left there, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_settled
short_description: Say whether a host still is as the last deployment left it
description:
  - A whole deployment ends with a record of what it left on the host, together with a hash of all that it was made
    from. A host on which both still hold needs nothing, and the other roles are not asked.
  - Of the host it compares the testbed's files, what else is named in I(paths), and of every container whether it is
    the same one, runs, is healthy, and is held to the same limits.
  - The action plugin of this name hashes what a deployment is made from on the controller, and puts a host that
    differs into the group C(testbed_unsettled).
options:
  root:
    description: The testbed's folder on the host.
    type: path
    required: true
  project:
    description: The testbed's Compose project.
    type: str
    required: true
  inputs:
    description: Hash of what the host's state is made from.
    type: str
    required: true
  owner:
    description: The id of whose testbed this is.
    type: str
    required: true
  paths:
    description: Further files and folders that belong to the state.
    type: list
    elements: path
    default: []
  network:
    description: The network condition that the inventory gives the host, in bit/s, seconds and shares of 1.
    type: dict
    default: {}
  state:
    description: Whether to compare with the record or to write it.
    type: str
    choices: [compared, recorded]
    default: compared
author: fltestbed authors
"""

RETURN = r"""
settled:
  description: Whether nothing differs.
  returned: always
  type: bool
differences:
  description: What differs, in words.
  returned: always
  type: list
  elements: str
changed_services:
  description: Services of which the container itself was changed since, so that Compose would not see it.
  returned: always
  type: list
  elements: str
now:
  description: The host's time, in seconds since 1970.
  returned: always
  type: float
objection:
  description: What speaks against deploying to I(root), and what to do; empty where nothing does.
  returned: always
  type: str
conditions:
  description: The conditions in force, the inventory's own too, as M(testbed_conditions) says them.
  returned: always
  type: list
  elements: dict
ansible_facts:
  description: C(testbed_kind), the host's C(arch) and C(cgroup), as M(testbed_probe) returns them.
  returned: always
  type: dict
"""

import hashlib
import json
import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import EngineUnreachable, containers, inspect
from ansible.module_utils.testbed_host import cgroup
from ansible.module_utils.testbed_in_force import InForce
from ansible.module_utils.testbed_root import objection

RECORD = ".fltestbed-settled.json"
# What runs and their data change below the testbed's folder.
NOT_STATE = {"app", "data", "grafana-state", "history", "runs", "state", "submitted", "test", "textfile", RECORD}
HASHED_BYTES = 2**20
OTHER_NETWORK = "the network is not as the inventory says"
LIMITS = ("NanoCpus", "CpuQuota", "CpuPeriod", "Memory", "MemorySwap")


def describe_files(root, paths):
    """Return a line for each file: mode, owner, and content (of a large file its size and time)."""
    found = {}
    tops = [path for path in root.iterdir() if path.name not in NOT_STATE] if root.is_dir() else []
    for top in [*tops, *map(Path, paths)]:
        files = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
        for path in files:
            status = path.stat()
            if status.st_size > HASHED_BYTES:
                content = f"{status.st_size} {status.st_mtime_ns}"
            else:
                content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            found[str(path)] = f"{status.st_mode:o} {status.st_uid} {content}"
    return found


def describe_containers(project):
    """Return each service's container: its id, image and limits, and whether it is up."""
    found = {}
    for summary in containers(project):
        record = inspect(summary["Id"])
        state = record["State"]
        found[record["Config"]["Labels"]["com.docker.compose.service"]] = {
            "id": record["Id"],
            "image": record["Image"],
            "limits": [record["HostConfig"][name] for name in LIMITS],
            "up": state["Status"] == "running" and state.get("Health", {}).get("Status", "healthy") == "healthy",
        }
    return found


def observe(module):
    """Return what there is now. Raises EngineUnreachable."""
    return {
        "inputs": module.params["inputs"],
        "files": describe_files(Path(module.params["root"]), module.params["paths"]),
        "containers": describe_containers(module.params["project"]),
    }


def differences(left, now):
    """Return what differs between the record and what there is now, in words."""
    said = []
    if left["inputs"] != now["inputs"]:
        said.append("the inventory, the keys or fltestbed itself changed")
    for path in sorted(left["files"].keys() | now["files"].keys()):
        if path not in now["files"]:
            said.append(f"{path} is gone")
        elif path not in left["files"]:
            said.append(f"{path} is new")
        elif left["files"][path] != now["files"][path]:
            said.append(f"{path} was changed")
    for service in sorted(left["containers"].keys() | now["containers"].keys()):
        before, after = left["containers"].get(service), now["containers"].get(service)
        if after is None:
            said.append(f"container {service} is gone")
        elif before is None:
            said.append(f"container {service} is new")
        elif not after["up"]:
            said.append(f"container {service} does not run or is not healthy")
        elif before["limits"] != after["limits"]:
            said.append(f"the limits of container {service} were changed")
        elif any(before[key] != after[key] for key in ("id", "image")):  # one that was just starting may be up now
            said.append(f"container {service} was replaced")
    return said


def changed_conditions(conditions, network):
    """Return what of the conditions in force is not as the inventory says, in words."""
    said = [f"{each['text']} since {each['since']}" for each in conditions if each["kind"] != "network"]
    there = [each["parameters"] for each in conditions if each["kind"] == "network" and not each["lost"]]
    if there != [network] * bool(network):
        said.append(OTHER_NETWORK)
    return said


def changed_services(left, now, conditions):
    """Return the services whose container is the one of the record, with other limits that no condition explains."""
    throttled = {f"client-{each['client']}" for each in conditions if each["kind"] == "throttle"}
    return [
        service
        for service, after in now["containers"].items()
        if service not in throttled
        and (before := left["containers"].get(service))
        and before["id"] == after["id"]
        and before["limits"] != after["limits"]
    ]


def write(path, record):
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(record))
    partial.chmod(0o600)
    partial.replace(path)


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "project": {"type": "str", "required": True},
            "inputs": {"type": "str", "required": True},
            "owner": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "network": {"type": "dict", "default": {}},
            "state": {"choices": ["compared", "recorded"], "default": "compared"},
        },
        supports_check_mode=True,
    )
    record = Path(module.params["root"]) / RECORD
    # As testbed_probe says it, for those who need it of a host that is left alone.
    result = {"changed": False, "ansible_facts": {"testbed_kind": {"arch": os.uname().machine, "cgroup": cgroup()}}}
    result |= {"now": time.time(), "settled": False, "objection": ""}
    result |= {"differences": [], "changed_services": [], "conditions": []}
    try:
        result["objection"] = ". To mend it: ".join(objection(module.params["root"], module.params["owner"]))
        result["conditions"] = conditions = InForce(module.params["project"]).standing()
        left = json.loads(record.read_text()) if record.exists() else None
        now = observe(module) if left or module.params["state"] == "recorded" else None
    except EngineUnreachable as error:
        module.exit_json(**result | {"differences": [str(error)]})
    except (OSError, ValueError) as error:
        module.exit_json(**result | {"differences": [f"{record.parent}: {error}"]})
    if module.params["state"] == "recorded":
        if not module.check_mode:
            write(record, now)
        module.exit_json(**result | {"settled": True})
    said = changed_conditions(conditions, module.params["network"])
    said += differences(left, now) if left else ["no whole deployment has ended here yet"]
    services = changed_services(left, now, conditions) if left else []
    module.exit_json(**result | {"settled": not said, "differences": said, "changed_services": services})


if __name__ == "__main__":
    main()
