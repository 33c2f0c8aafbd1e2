#!/usr/bin/python
"""Keeps a folder of data files equal to what its owner may have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_shards
short_description: Check data files by hash, and remove every other
description:
  - Looks into folders that each hold the data of one owner. A file whose SHA-256 is not the one asked for, or that is
    not asked
    for at all, is removed, so that a client never holds another's part of the data, nor a truncated one of its own.
options:
  root:
    description: Folder of the folders.
    type: path
    required: true
  shards:
    description: SHA-256 of the one file that each owner is to have, named C(SHA256.npz), by owner.
    type: dict
    required: true
author: fltestbed authors
"""

RETURN = r"""
missing:
  description: Owners whose file is not there.
  returned: always
  type: list
  elements: str
removed:
  description: Files removed, or that would be in check mode.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_digest import sha256


def main():
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "required": True}, "shards": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    missing, removed = [], []
    for owner, wanted in module.params["shards"].items():
        held = False
        folder = Path(module.params["root"]) / owner
        if not folder.is_dir():
            module.fail_json(
                msg=f"there is no {folder}: `fltestbed up` makes it, as the inventory says now; then run again"
            )
        for path in sorted(folder.iterdir()):
            if path.name == f"{wanted}.npz" and sha256(path) == wanted:
                held = True
                continue
            removed.append(f"{owner}/{path.name}")
            if not module.check_mode:
                path.unlink()
        if not held:
            missing.append(owner)
    module.exit_json(changed=bool(removed), missing=missing, removed=removed)


if __name__ == "__main__":
    main()
