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
    SuperLink's database, and lives and dies with it.
  - What was broken off between the two is mended. A node that has a client's key and is not in the file is found in
    SuperLink's database, and one that SuperLink does not know is forgotten.
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

import base64
import contextlib
import json
import sqlite3
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# What Flower says of a key that a node has already, and of a node that it does not know.
KEY_IN_USE = "Public key already in use"
NO_NODE = "Node ID not found"
POINT = 97  # bytes of a P-384 key's point, with which it ends as OpenSSH writes it and as PEM


def flwr(module, *arguments, unless=None):
    """Run flwr in SuperLink's container; return its JSON answer, None where it refuses with the words `unless`.

    Any other failure ends the module.
    """
    command = ["docker", "exec", module.params["container"], "flwr", *arguments, "--format", "json"]
    code, out, err = module.run_command(command)
    answer = json.loads(out) if out.strip().startswith("{") else {}
    if code != 0 or not answer.get("success", False):
        if unless and unless in f"{answer.get('error-message')} {err} {out}":
            return None
        module.fail_json(
            msg=f"flwr {' '.join(arguments)} failed: {answer.get('error-message') or err or out}", cmd=command
        )
    return answer


def register(module, root, client, key):
    """Return the id of the node with the client's key: of a new one, unless there is one."""
    file = f"/etc/fltestbed/nodes/{client}.pub"
    answer = flwr(module, "supernode", "register", file, "testbed", "--name", client, unless=KEY_IN_USE)
    node_id = str(answer["node-id"]) if answer else node_with(root, key)
    if node_id is None:
        module.fail_json(
            msg=f"the key of {client} was taken off SuperLink's register, which takes none twice. Remove nodes/"
            f"{client} and nodes/{client}.pub from .fltestbed/TESTBED/pki on the controller: the next up makes new ones"
        )
    return node_id


def node_with(root, key):
    """Return the id of the node on the register that has a public key, None for none.

    Flower's own lists (1.41) don't say the keys, so this reads its database.
    """
    point = base64.b64decode(key.split()[1])[-POINT:]
    with contextlib.closing(sqlite3.connect(f"file:{root}/state/state.db?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT node_id, public_key FROM node WHERE status != 'unregistered'").fetchall()
    for node_id, pem in rows:
        if base64.b64decode(b"".join(pem.splitlines()[1:-1])).endswith(point):
            return str(node_id % 2**64)  # a column is signed
    return None


def unregister(module, node_id):
    flwr(module, "supernode", "unregister", node_id, "testbed", unless=NO_NODE)


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
            unregister(module, held[client]["id"])
            del held[client]
            save(module, record, held)
        for client in new:
            held[client] = {"id": register(module, root, client, keys[client]), "key": keys[client]}
            save(module, record, held)
    module.exit_json(
        changed=bool(gone or new),
        nodes={client: node["id"] for client, node in held.items()},
        registered=new,
        removed=gone,
    )


def save(module, record, held):
    partial = record.with_suffix(".new")
    try:
        partial.write_text(json.dumps(held, indent=1))
        partial.replace(record)
    except OSError as error:
        module.fail_json(msg=f"could not write {record}: {error}")


if __name__ == "__main__":
    main()
