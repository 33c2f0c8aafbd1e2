"""Writes images as files: a store of blobs, shared by all images, and a folder for each image that names its blobs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

CHUNK = 8 * 2**20
OCI = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Docker names what uname -m says
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # how a compressed file begins


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


class Unusable(Exception):
    """An image is sound, and yet none to take."""


class Tar:
    """A layer as the tar that it is made of, and what that hashes to as far as it was read.

    An engine with containerd's image store saves layers as they were built or pulled, and that is compressed.
    """

    def __init__(self, stream):
        begin = stream.peek(len(ZSTD))
        if begin.startswith(ZSTD):
            raise Unusable(
                "a layer is compressed with zstd, which cannot be read here: take another tag of the image, or save it "
                "with an engine without containerd's image store"
            )
        self._stream = gzip.GzipFile(fileobj=stream) if begin.startswith(GZIP) else stream
        self._digest = hashlib.sha256()

    @property
    def diff_id(self):
        return f"sha256:{self._digest.hexdigest()}"

    def read(self, size):
        content = self._stream.read(size)
        self._digest.update(content)
        return content


def blob_folder(store):
    """Return the store's folder of blobs, made if needed."""
    folder = store / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def blob_path(descriptor):
    """Return a blob's path below the store."""
    return "blobs/" + descriptor["digest"].replace(":", "/")


def write_image(store, scratch, layout, config, layers, tags):
    """Write the image's folder, from its config (bytes) and its layers' descriptors. index.json lands last."""
    blobs = blob_folder(store)
    config = add_blob(blobs, scratch, [config], f"{OCI}.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": layers}
    descriptor = add_blob(blobs, scratch, [json.dumps(manifest).encode()], manifest["mediaType"])
    for_docker_load = {
        "Config": blob_path(config),
        "RepoTags": tags,
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
