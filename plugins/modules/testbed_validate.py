#!/usr/bin/python
"""Lets a program of an image check config files before they land."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_validate
short_description: Check config files before they land
description:
  - Runs a command in a container without a network, in a folder that holds the files. Fails with what the command said.
  - Files that the host has already are taken as checked, so nothing is run if none differs. Nothing is changed.
options:
  root:
    description: The folder where the files will lie.
    type: path
    required: true
  files:
    description: Files by path below I(root), each with C(content).
    type: dict
    required: true
  image:
    description: Image that has the command.
    type: str
    required: true
  command:
    description: The command.
    type: list
    elements: str
    required: true
author: fltestbed authors
"""

RETURN = r"""
checked:
  description: Whether the command had to be run.
  returned: always
  type: bool
"""

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main():
    os.umask(0o022)  # what runs in containers as another user reads the folders too
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
            "image": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    wanted = {name: entry["content"] for name, entry in module.params["files"].items()}
    if all((root / name).is_file() and (root / name).read_text() == content for name, content in wanted.items()):
        module.exit_json(changed=False, checked=False)
    program, *arguments = module.params["command"]
    with tempfile.TemporaryDirectory(prefix="fltestbed-check-") as folder:
        Path(folder).chmod(0o755)
        for name, content in wanted.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o644)
        container = ["docker", "run", "--rm", "--network=none", f"--volume={folder}:/check:ro", "--workdir=/check"]
        code, out, err = module.run_command([*container, f"--entrypoint={program}", module.params["image"], *arguments])
    if code:
        module.fail_json(msg=f"{program} refuses the files that would land in {root}; nothing was changed.\n{out}{err}")
    module.exit_json(changed=False, checked=True)


if __name__ == "__main__":
    main()
