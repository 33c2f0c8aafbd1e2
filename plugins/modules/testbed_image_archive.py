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

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

CHUNK = 8 * 2**20
OCI = "application/vnd.oci.image"


def add_blob(blobs, scratch, chunks, media_type):
    """Write chunks of bytes as one blob, by way of the scratch folder; return its OCI descriptor."""
    digest = hashlib.sha256()
    size = 0
    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as out:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    Path(out.name).chmod(0o644)
    Path(out.name).replace(blobs / digest.hexdigest())
    return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def gzipped(stream):
    """Yield the stream as gzip members, compressed on all cores; gzip readers take members one after the other.

    Level 5 gives files 1 % larger than level 6 in two thirds of the time.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for _batch in count():
            chunks = [chunk for chunk in (stream.read(CHUNK) for _ in range(workers)) if chunk]
            if not chunks:
                return
            yield from pool.map(lambda data: gzip.compress(data, compresslevel=5, mtime=0), chunks)


def write_layout(saved, store, layout):
    """Write the image of a ``docker save`` archive into the store."""
    blobs = store / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    scratch = saved.parent
    with tarfile.open(saved) as archive:
        (image,) = json.load(archive.extractfile("manifest.json"))
        config = archive.extractfile(image["Config"]).read()
        config = add_blob(blobs, scratch, [config], f"{OCI}.config.v1+json")
        layers = [
            add_blob(blobs, scratch, gzipped(archive.extractfile(name)), f"{OCI}.layer.v1.tar+gzip")
            for name in image["Layers"]
        ]
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": layers}
    descriptor = add_blob(blobs, scratch, [json.dumps(manifest).encode()], manifest["mediaType"])
    for_docker_load = {
        "Config": blob_path(config),
        "RepoTags": image["RepoTags"],
        "Layers": [blob_path(layer) for layer in layers],
    }
    folder = store / layout
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps([for_docker_load]))
    index = {
        "schemaVersion": 2,
        "manifests": [descriptor],
        "annotations": {"blobs": " ".join(blob["digest"] for blob in (descriptor, config, *layers))},
    }
    (folder / "index.json.new").write_text(json.dumps(index))
    (folder / "index.json.new").rename(folder / "index.json")


def blob_path(descriptor):
    return "blobs/" + descriptor["digest"].replace(":", "/")


def main():
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
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
