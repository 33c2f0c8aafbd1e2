#!/usr/bin/python
"""Loads an image layout that ``testbed_image_archive`` wrote into the local engine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_load
short_description: Load an image layout into the local engine
options:
  store:
    description: Folder of C(blobs/) and of the images' folders.
    type: path
    required: true
  layout:
    description: Name of the image's folder.
    type: str
    required: true
author: fltestbed authors
"""

RETURN = r"""
stdout:
  description: What C(docker load) said.
  returned: success
  type: str
"""

import json
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={"store": {"type": "path", "required": True}, "layout": {"type": "str", "required": True}}
    )
    store = Path(module.params["store"])
    manifest = store / module.params["layout"] / "manifest.json"
    (image,) = json.loads(manifest.read_text())
    loader = subprocess.Popen(
        ["docker", "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        with tarfile.open(fileobj=loader.stdin, mode="w|") as archive:
            archive.add(manifest, arcname="manifest.json")
            for blob in [image["Config"], *image["Layers"]]:
                archive.add(store / blob, arcname=blob)
        loader.stdin.close()
    except BrokenPipeError:
        pass  # docker says why, below
    said = loader.stdout.read().decode(errors="replace").strip()
    if loader.wait() != 0:
        module.fail_json(msg=f"the Docker engine would not load {module.params['layout']}: {said}")
    module.exit_json(changed=True, stdout=said)


if __name__ == "__main__":
    main()
