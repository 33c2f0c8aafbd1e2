#!/usr/bin/python
"""What runs on a host, and which limits its kernel holds it to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_status
short_description: Report a host's containers, limits, SuperNodes and run
description:
  - Reads each client's limits back from the kernel's control groups, version 1 or 2, beside what was asked.
  - On the server host it also reports which SuperNodes are online, and the latest run.
options:
  root:
    description: The testbed's folder on the host.
    type: path
    required: true
  project:
    description: The testbed's Compose project.
    type: str
    required: true
  server:
    description: Whether this is the server host.
    type: bool
    default: false
author: fltestbed authors
"""

RETURN = r"""
os:
  description: The operating system's name.
  returned: always
  type: str
arch:
  description: Architecture as C(uname -m) says it.
  returned: always
  type: str
docker:
  description: The engine's version; null where none answers.
  returned: always
  type: str
containers:
  description: >-
    Each with C(service), C(state), C(health), C(started), C(image), C(image_id), C(client), and for what trains
      C(cpus_asked), C(cpus), C(memory_asked),
    C(memory) (cores, bytes; null for no limit).
  returned: always
  type: list
  elements: dict
conditions:
  description: The conditions in force, as M(testbed_conditions) says them.
  returned: always
  type: list
  elements: dict
nodes:
  description: C(name), C(status), C(node_id) of every registered SuperNode.
  returned: when I(server=true)
  type: list
  elements: dict
run:
  description: The latest run with C(name), C(status), C(round), C(rounds), C(reason); null where there is none.
  returned: when I(server=true)
  type: dict
"""

import json
import platform
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import EngineUnreachable, cgroup_limits, containers, get, inspect
from ansible.module_utils.testbed_host import operating_system
from ansible.module_utils.testbed_in_force import InForce


def describe(summary):
    """Return one container's row."""
    record = inspect(summary["Id"])
    labels = record["Config"]["Labels"]
    state = record["State"]
    row = {
        "service": labels["com.docker.compose.service"],
        "state": state["Status"],
        "health": state.get("Health", {}).get("Status"),
        "started": state["StartedAt"],
        "image": record["Config"]["Image"],
        "image_id": record["Image"],
        "client": labels.get("fltestbed.client"),
    }
    if "fltestbed.cpus" in labels:
        cpus, memory = cgroup_limits(state["Pid"]) if state["Pid"] else (None, None)
        row |= {
            "cpus_asked": float(labels["fltestbed.cpus"]) if labels["fltestbed.cpus"] else None,
            "cpus": cpus,
            "memory_asked": int(labels["fltestbed.memory"]) if labels["fltestbed.memory"] else None,
            "memory": memory,
        }
    return row


def supernodes(module, root):
    record = root / "state" / "nodes.json"
    names = {node["id"]: name for name, node in json.loads(record.read_text()).items()} if record.exists() else {}
    command = [
        "docker",
        "exec",
        f"{module.params['project']}-superlink-1",
        "flwr",
        "supernode",
        "ls",
        "testbed",
        "--format",
        "json",
    ]
    code, out, _err = module.run_command(command)
    listed = {str(node["node-id"]): node["status"] for node in json.loads(out)["nodes"]} if code == 0 else {}
    return [
        {"name": name, "status": listed.get(node_id, "unknown"), "node_id": node_id} for node_id, name in names.items()
    ]


def latest_run(root):
    records = sorted((root / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not records:
        return None
    record = json.loads(records[-1].read_text())
    return {"name": records[-1].parent.name} | {key: record.get(key) for key in ("status", "round", "rounds", "reason")}


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "project": {"type": "str", "required": True},
            "server": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    result = {
        "os": operating_system()["name"],
        "arch": platform.machine(),
        "docker": None,
        "containers": [],
        "conditions": InForce(module.params["project"]).standing(),
    }
    try:
        result["docker"] = get("/version")["Version"]
        result["containers"] = sorted(
            map(describe, containers(module.params["project"])), key=lambda row: row["service"]
        )
    except EngineUnreachable:
        pass  # docker stays null: the host has no engine, or it is down
    if module.params["server"]:
        result |= {"nodes": supernodes(module, root) if result["docker"] else [], "run": latest_run(root)}
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
