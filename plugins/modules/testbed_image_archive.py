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
    description: An archive that C(docker save) wrote elsewhere, to be used instead of the local engine. Its image is
      named I(image).
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
  arch:
    description: Architecture that the image has to be for, as C(uname -m) says it.
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

import gzip
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_oci import (
    ARCHITECTURES,
    OCI,
    Tar,
    Unusable,
    add_blob,
    blob_folder,
    gzipped,
    write_image,
)


def choose(archive, arch):
    """Return the image of an archive that is for an architecture, and its config in bytes."""
    images = {}
    for image in json.load(archive.extractfile("manifest.json")):
        config = archive.extractfile(image["Config"]).read()
        images[json.loads(config)["architecture"]] = image, config
    wanted = ARCHITECTURES.get(arch, arch)
    if wanted not in images:
        names = [tag for image, _config in images.values() for tag in image["RepoTags"] or []]
        raise Unusable(
            f"it is for {' and '.join(images)}, and the {arch} host needs {wanted}: docker pull --platform "
            f"linux/{wanted} {' '.join(names) or 'IMAGE'}, and save that"
        )
    return images[wanted]


def write_layout(saved, store, layout, arch, tag=None):
    """Write the image of a ``docker save`` archive into the store; a tag replaces those that it was saved with."""
    blobs = blob_folder(store)
    scratch = Path(tempfile.mkdtemp(prefix=".image-", dir=store))
    try:
        with tarfile.open(saved) as archive:
            image, config = choose(archive, arch)
            layers, diff_ids = [], []
            for name in image["Layers"]:
                tar = Tar(archive.extractfile(name))
                layers.append(add_blob(blobs, scratch, gzipped(tar), f"{OCI}.layer.v1.tar+gzip"))
                diff_ids.append(tar.diff_id)
        if diff_ids != json.loads(config)["rootfs"]["diff_ids"]:
            raise ValueError("its layers are not those that its config names")
        write_image(store, scratch, layout, config, layers, [tag] if tag else image["RepoTags"])
    finally:
        shutil.rmtree(scratch)


def said(module):
    return module.params["archive"] or f"what the engine saved of {module.params['image']}"


def write(module, store, layout):
    """Write the layout, of the archive or of what the engine saves."""
    image, archive, arch = (module.params[key] for key in ("image", "archive", "arch"))
    store.mkdir(parents=True, exist_ok=True)
    if archive:
        write_layout(Path(archive), store, layout, arch, image)
        return
    scratch = Path(tempfile.mkdtemp(prefix=".image-", dir=store))
    try:
        module.run_command(["docker", "save", "-o", str(scratch / "saved.tar"), image], check_rc=True)
        write_layout(scratch / "saved.tar", store, layout, arch)
    finally:
        shutil.rmtree(scratch)


def main():
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "store": {"type": "path", "required": True},
            "layout": {"type": "str", "required": True},
            "arch": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # so that the user of the connection may fetch what root wrote
    store, layout = Path(module.params["store"]), module.params["layout"]
    index = store / layout / "index.json"
    changed = not index.exists()
    if changed and module.check_mode:
        module.exit_json(changed=True, digest="", blobs=[])
    if changed:
        try:
            write(module, store, layout)
        except Unusable as error:
            module.fail_json(msg=f"{said(module)} cannot be used: {error}")
        except (gzip.BadGzipFile, zlib.error, EOFError, KeyError, ValueError, tarfile.TarError) as error:
            module.fail_json(msg=f"{said(module)} is no archive of an image, as `docker save` writes it: {error}")
        except OSError as error:
            module.fail_json(msg=f"{said(module)} could not be written to {store}: {error}")
    written = json.loads(index.read_text())
    module.exit_json(
        changed=changed, digest=written["manifests"][0]["digest"], blobs=written["annotations"]["blobs"].split()
    )


if __name__ == "__main__":
    main()
