#!/usr/bin/python
"""Keeps SuperLink's register of SuperNodes equal to the testbed's clients."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_nodes
short_description: Register SuperNodes with SuperLink
description:
  - Registers each client's public key under the client's name, and takes clients off the register that are gone or
    have a new key.
  - Flower's register can't be asked for names and keys, so what was registered is kept in C(state/nodes.json), beside
    SuperLink's
    database, and lives and dies with it.
options:
  root:
    description: The testbed's folder on the server host, with C(superlink/nodes/CLIENT.pub).
    type: path
    required: true
  container:
    description: SuperLink's container.
    type: str
    required: true
  clients:
    description: The clients' names.
    type: list
    elements: str
    required: true
  state:
    description: C(present) leaves exactly I(clients) on the register, C(absent) takes them off it and no other.
    type: str
    choices: [present, absent]
    default: present
author: fltestbed authors
"""

RETURN = r"""
nodes:
  description: Node ids by client.
  returned: success
  type: dict
registered:
  description: Clients newly registered.
  returned: success
  type: list
  elements: str
removed:
  description: Clients taken off the register, or whose old key was.
  returned: success
  type: list
  elements: str
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def flwr(module, *arguments):
    """Run flwr in SuperLink's container; return its JSON answer. A failure ends the module."""
    command = ["docker", "exec", module.params["container"], "flwr", *arguments, "--format", "json"]
    code, out, err = module.run_command(command)
    answer = json.loads(out) if out.strip().startswith("{") else {}
    if code != 0 or not answer.get("success", False):
        module.fail_json(
            msg=f"flwr {' '.join(arguments)} failed: {answer.get('error-message') or err or out}", cmd=command
        )
    return answer


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "container": {"type": "str", "required": True},
            "clients": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    record = root / "state" / "nodes.json"
    held = json.loads(record.read_text()) if record.exists() else {}
    keys = {}
    for client in module.params["clients"]:
        path = root / "superlink" / "nodes" / f"{client}.pub"
        keys[client] = path.read_text().strip() if path.exists() else ""
    if module.params["state"] == "present":
        gone = [client for client, node in held.items() if keys.get(client) != node["key"]]
        new = [client for client in keys if client not in held or client in gone]
    else:
        gone, new = [client for client in keys if client in held], []
    if not module.check_mode:
        for client in gone:
            flwr(module, "supernode", "unregister", str(held[client]["id"]), "testbed")
            del held[client]
            save(record, held)
        for client in new:
            answer = flwr(
                module, "supernode", "register", f"/etc/fltestbed/nodes/{client}.pub", "testbed", "--name", client
            )
            held[client] = {"id": str(answer["node-id"]), "key": keys[client]}
            save(record, held)
    module.exit_json(
        changed=bool(gone or new),
        nodes={client: node["id"] for client, node in held.items()},
        registered=new,
        removed=gone,
    )


def save(record, held):
    partial = record.with_suffix(".new")
    partial.write_text(json.dumps(held, indent=1))
    partial.replace(record)


if __name__ == "__main__":
    main()
