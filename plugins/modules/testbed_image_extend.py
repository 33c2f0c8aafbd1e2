#!/usr/bin/python
"""Makes an image out of another one and a layer of programs, as files, without a Docker engine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_extend
short_description: Put a layer of programs on top of an image layout
description:
  - Takes an image layout that M(testbed_image_archive) wrote and files out of a tar archive, and writes the image that
    has both. Who has the base downloads the new layer alone.
  - Nothing of the image is run, so the controller makes images of every architecture.
options:
  store:
    description: Folder of C(blobs/) and of the images' folders.
    type: path
    required: true
  base:
    description: Name of the base's folder.
    type: str
    required: true
  layout:
    description: Name of the new image's folder. One that is there is taken as done, since its name holds the content's
      hash.
    type: str
    required: true
  image:
    description: Repository and tag of the new image.
    type: str
    required: true
  archive:
    description: The tar archive.
    type: path
    required: true
  files:
    description: Files and folders, by their path in the image, with their path in the archive.
    type: dict
    required: true
author: fltestbed authors
"""

RETURN = r"""
bytes:
  description: Size of the new layer as it is downloaded.
  returned: when it was made
  type: int
"""

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_digest import sha256
from ansible.module_utils.testbed_oci import OCI, add_blob, blob_folder, blob_path, gzipped, write_image


def write_layer(archive, files, path):
    """Write the files' layer as a tar at path; the same files make the same bytes. Raises ValueError if one lacks."""
    missing = set(files.values())
    with tarfile.open(archive) as source, tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as layer:
        for member in source:
            name = member.name.removeprefix("./")
            for target, wanted in files.items():
                if name != wanted and not name.startswith(wanted + "/"):
                    continue
                missing.discard(wanted)
                member.name = target + name.removeprefix(wanted)
                member.uid = member.gid = member.mtime = 0
                member.uname = member.gname = ""
                layer.addfile(member, source.extractfile(member) if member.isreg() else None)
                break
    if missing:
        raise ValueError(f"{archive} lacks {', '.join(sorted(missing))}")


def extend(store, base, layout, image, archive, files):
    """Write the image; return the size of its new layer in bytes."""
    descriptor = json.loads((store / base / "index.json").read_text())["manifests"][0]
    manifest = json.loads((store / blob_path(descriptor)).read_text())
    config = json.loads((store / blob_path(manifest["config"])).read_text())
    scratch = Path(tempfile.mkdtemp(prefix=".image-", dir=store))
    try:
        tar = scratch / "layer.tar"
        write_layer(archive, files, tar)
        config["rootfs"]["diff_ids"].append(f"sha256:{sha256(tar)}")
        with tar.open("rb") as content:
            layer = add_blob(blob_folder(store), scratch, gzipped(content), f"{OCI}.layer.v1.tar+gzip")
        config["history"] = [*config.get("history", []), {"created_by": f"fltestbed: {' '.join(sorted(files))}"}]
        write_image(store, scratch, layout, json.dumps(config).encode(), [*manifest["layers"], layer], [image])
    finally:
        shutil.rmtree(scratch)
    return layer["size"]


def main():
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "base": {"type": "str", "required": True},
            "layout": {"type": "str", "required": True},
            "image": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = dict(module.params)
    store = Path(wanted.pop("store"))
    if (store / wanted["layout"] / "index.json").exists():
        module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True)
    try:
        size = extend(store, **wanted)
    except (OSError, ValueError, tarfile.TarError) as error:
        module.fail_json(msg=f"could not make the image {wanted['image']}: {error}")
    module.exit_json(changed=True, bytes=size)


if __name__ == "__main__":
    main()
