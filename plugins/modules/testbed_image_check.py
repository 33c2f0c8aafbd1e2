#!/usr/bin/python
"""Checks an image layout that ``testbed_image_archive`` wrote, before it is brought to hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_check
short_description: Check the blobs of an image layout by their names
description:
  - A blob is named by its SHA-256. One that is damaged or missing is removed together with the C(index.json) that marks
    the image as whole, so that the next deployment makes the image anew; and the module fails, naming it.
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
msg:
  description: Which files were damaged.
  returned: when some were
  type: str
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_digest import sha256


def main():
    module = AnsibleModule(
        argument_spec={"store": {"type": "path", "required": True}, "layout": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    store = Path(module.params["store"])
    index = store / module.params["layout"] / "index.json"
    names = json.loads(index.read_text())["annotations"]["blobs"].split()
    blobs = {store / "blobs" / name.replace(":", "/"): name.removeprefix("sha256:") for name in names}
    damaged = [blob for blob, digest in blobs.items() if not blob.exists() or sha256(blob) != digest]
    if not damaged:
        module.exit_json(changed=False)
    if not module.check_mode:
        for path in (index, *damaged):
            path.unlink(missing_ok=True)
    module.fail_json(
        msg=f"the image {module.params['layout']} is damaged in this machine's cache: {', '.join(map(str, damaged))} "
        "is not what its name says. It was removed; the same command makes the image anew"
    )


if __name__ == "__main__":
    main()
