#!/usr/bin/python
"""Turns an image of the local engine into files that a plain web server can serve as a registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_archive
short_description: Write an image as an OCI image layout
description:
  - Saves an image of the local Docker engine as OCI blobs with gzipped layers, and a folder with the C(index.json)
    that names
    them. The blobs are what a registry's clients ask for, so no registry program is needed. Images share equal blobs.
  - The folder also has the C(manifest.json) that C(docker load) wants in a tar of the blobs.
  - C(index.json) is written last and marks an image as whole.
options:
  image:
    description: Repository and tag of the image.
    type: str
    required: true
  archive:
    description: An archive that C(docker save) wrote elsewhere, to be used instead of the local engine. Its one image
      is named I(image).
    type: path
  store:
    description: Folder of C(blobs/) and of the images' folders.
    type: path
    required: true
  layout:
    description: Name of the image's folder. One that is there is taken as done, since its name holds the content's
      hash.
    type: str
    required: true
author: fltestbed authors
"""

RETURN = r"""
digest:
  description: The manifest's digest, C(sha256:…), by which devices pull.
  returned: always
  type: str
blobs:
  description: Digests of all blobs, the manifest's first.
  returned: always
  type: list
  elements: str
"""

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_oci import OCI, add_blob, blob_folder, gzipped, write_image


def write_layout(saved, store, layout, tag=None):
    """Write the image of a ``docker save`` archive into the store; a tag replaces those that it was saved with."""
    blobs = blob_folder(store)
    scratch = Path(tempfile.mkdtemp(prefix=".image-", dir=store))
    try:
        with tarfile.open(saved) as archive:
            (image,) = json.load(archive.extractfile("manifest.json"))
            config = archive.extractfile(image["Config"]).read()
            layers = [
                add_blob(blobs, scratch, gzipped(archive.extractfile(name)), f"{OCI}.layer.v1.tar+gzip")
                for name in image["Layers"]
            ]
        write_image(store, scratch, layout, config, layers, [tag] if tag else image["RepoTags"])
    finally:
        shutil.rmtree(scratch)


def main():
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "store": {"type": "path", "required": True},
            "layout": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    store, layout = Path(module.params["store"]), module.params["layout"]
    index = store / layout / "index.json"
    changed = not index.exists()
    if changed and module.check_mode:
        module.exit_json(changed=True, digest="", blobs=[])
    if changed:
        store.mkdir(parents=True, exist_ok=True)
        if module.params["archive"]:
            try:
                write_layout(Path(module.params["archive"]), store, layout, module.params["image"])
            except (OSError, KeyError, ValueError, tarfile.TarError) as error:
                module.fail_json(
                    msg=f"{module.params['archive']} is no archive of one image, as `docker save` writes it: {error}"
                )
        else:
            scratch = Path(tempfile.mkdtemp(prefix=".image-", dir=store))
            try:
                module.run_command(
                    ["docker", "save", "-o", str(scratch / "saved.tar"), module.params["image"]], check_rc=True
                )
                write_layout(scratch / "saved.tar", store, layout)
            finally:
                shutil.rmtree(scratch)
    written = json.loads(index.read_text())
    module.exit_json(
        changed=changed, digest=written["manifests"][0]["digest"], blobs=written["annotations"]["blobs"].split()
    )


if __name__ == "__main__":
    main()
