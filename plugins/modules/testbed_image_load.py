#!/usr/bin/python
"""Loads an image layout that ``testbed_image_archive`` wrote into the local engine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_load
short_description: Load an image layout into the local engine
options:
  path:
    description: Folder of the layout.
    type: path
    required: true
author: fltestbed authors
"""

RETURN = r"""
stdout:
  description: What C(docker load) said.
  returned: success
  type: str
"""

import subprocess
import tarfile

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}})
    loader = subprocess.Popen(["docker", "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        with tarfile.open(fileobj=loader.stdin, mode="w|") as archive:
            archive.add(module.params["path"], arcname=".")
        loader.stdin.close()
    except BrokenPipeError:
        pass  # docker says why, below
    said = loader.stdout.read().decode(errors="replace").strip()
    if loader.wait() != 0:
        module.fail_json(msg=f"the Docker engine would not load {module.params['path']}: {said}")
    module.exit_json(changed=True, stdout=said)


if __name__ == "__main__":
    main()
