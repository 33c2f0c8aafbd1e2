#!/usr/bin/python
"""Turns an image of the local engine into files that a plain web server can serve as a registry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_archive
short_description: Write an image as an OCI image layout
description:
  - Saves an image of the local Docker engine as an OCI image layout with gzipped layers. Its C(blobs/) are what a
    registry's clients ask for, and a tar of the folder is what C(docker load) takes, so no registry program is needed.
  - The layout appears whole or not at all.
options:
  image:
    description: Repository and tag of the image.
    type: str
    required: true
  path:
    description: Folder to make. One that is there is taken as done, since its name holds the content's hash.
    type: path
    required: true
author: fltestbed authors
"""

RETURN = r"""
digest:
  description: The manifest's digest, C(sha256:…), by which devices pull.
  returned: always
  type: str
bytes:
  description: Size of all blobs, what a device without any layer downloads.
  returned: always
  type: int
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


def add_blob(blobs, chunks, media_type):
    """Write chunks of bytes as one blob; return its OCI descriptor."""
    digest = hashlib.sha256()
    size = 0
    partial = blobs / "partial"
    with partial.open("wb") as out:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    partial.rename(blobs / digest.hexdigest())
    return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def gzipped(stream):
    """Yield the stream as gzip members, compressed on all cores; gzip readers take members one after the other."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for _batch in count():
            chunks = [chunk for chunk in (stream.read(CHUNK) for _ in range(workers)) if chunk]
            if not chunks:
                return
            yield from pool.map(lambda data: gzip.compress(data, compresslevel=6, mtime=0), chunks)


def write_layout(saved, layout):
    """Write the image in a ``docker save`` archive as an OCI layout; return (manifest digest, bytes of all blobs)."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with tarfile.open(saved) as archive:
        (image,) = json.load(archive.extractfile("manifest.json"))
        config = add_blob(blobs, [archive.extractfile(image["Config"]).read()], f"{OCI}.config.v1+json")
        layers = [
            add_blob(blobs, gzipped(archive.extractfile(name)), f"{OCI}.layer.v1.tar+gzip") for name in image["Layers"]
        ]
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": layers}
    descriptor = add_blob(blobs, [json.dumps(manifest).encode()], manifest["mediaType"])
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    for_docker_load = {
        "Config": blob_path(config),
        "RepoTags": image["RepoTags"],
        "Layers": [blob_path(layer) for layer in layers],
    }
    (layout / "manifest.json").write_text(json.dumps([for_docker_load]))


def blob_path(descriptor):
    return "blobs/" + descriptor["digest"].replace(":", "/")


def main():
    module = AnsibleModule(
        argument_spec={"image": {"type": "str", "required": True}, "path": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    layout = Path(module.params["path"])
    changed = not layout.exists()
    if changed and module.check_mode:
        module.exit_json(changed=True, digest="", bytes=0)
    if changed:
        layout.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".image-", dir=layout.parent))
        try:
            module.run_command(["docker", "save", "-o", str(scratch / "saved.tar"), module.params["image"]], check_rc=True)
            write_layout(scratch / "saved.tar", scratch / "layout")
            (scratch / "layout").rename(layout)
        finally:
            shutil.rmtree(scratch)
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    size = sum(blob.stat().st_size for blob in (layout / "blobs" / "sha256").iterdir())
    module.exit_json(changed=changed, digest=manifest["digest"], bytes=size)


if __name__ == "__main__":
    main()
