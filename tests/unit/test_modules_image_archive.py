"""testbed_image_archive, on an archive as `docker save` writes it."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

archive = load("modules", "testbed_image_archive")
oci = load("module_utils", "testbed_oci")

CONFIG = {"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}


def layer(size: int, name: str) -> bytes:
    """Return a tar with one file, as a layer of an image is."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = size
        tar.addfile(info, io.BytesIO(bytes(range(256)) * (size // 256 + 1)))
    return content.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """Write an image of two layers; the first is larger than what one gzip member takes."""
    layers = [layer(oci.CHUNK + 12345, "usr/lib/large"), layer(100, "etc/small")]
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "one/layer.tar": layers[0],
        "two/layer.tar": layers[1],
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": ["fltestbed/app:1"], "Layers": ["one/layer.tar", "two/layer.tar"]}]
        ).encode(),
    }
    path = tmp_path / "saved.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path, layers


def read(store: Path, descriptor: dict[str, Any]) -> bytes:
    """Return a blob, checked against its descriptor as a client of a registry does."""
    content = (store / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def blobs(store: Path) -> set[str]:
    return {f"sha256:{blob.name}" for blob in (store / "blobs/sha256").iterdir()}


def test_a_pull_by_digest_finds_its_way(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    path, layers = saved
    store = tmp_path / "store"
    archive.write_layout(path, store, "app-1-aarch64")
    index = json.loads((store / "app-1-aarch64/index.json").read_text())
    (entry,) = index["manifests"]
    manifest = json.loads(read(store, entry))
    assert manifest["schemaVersion"] == 2
    assert entry["mediaType"] == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert json.loads(read(store, manifest["config"])) == CONFIG
    assert {each["mediaType"] for each in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    assert [gzip.decompress(read(store, each)) for each in manifest["layers"]] == layers
    named = [each["digest"] for each in (entry, manifest["config"], *manifest["layers"])]
    assert index["annotations"]["blobs"].split() == named
    assert blobs(store) == set(named)


def test_docker_load_finds_its_manifest(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    path, layers = saved
    archive.write_layout(path, tmp_path, "app")
    (image,) = json.loads((tmp_path / "app/manifest.json").read_text())
    assert image["RepoTags"] == ["fltestbed/app:1"]
    assert json.loads((tmp_path / image["Config"]).read_text()) == CONFIG
    assert [gzip.decompress((tmp_path / name).read_bytes()) for name in image["Layers"]] == layers


def test_the_same_image_has_the_same_digest_and_shares_its_blobs(
    saved: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    archive.write_layout(saved[0], tmp_path, "a")
    before = blobs(tmp_path)
    archive.write_layout(saved[0], tmp_path, "b")
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()
    assert blobs(tmp_path) == before


def test_an_image_that_is_there_is_taken_as_done(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    archive.write_layout(saved[0], tmp_path, "app")
    answer = run(archive, image="no/such:image", store=str(tmp_path), layout="app")
    (entry,) = json.loads((tmp_path / "app/index.json").read_text())["manifests"]
    assert (answer["changed"], answer["digest"]) == (False, entry["digest"])
    assert answer["blobs"][0] == entry["digest"] and set(answer["blobs"]) == blobs(tmp_path)


def test_half_an_image_is_not_taken_as_done(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    archive.write_layout(saved[0], tmp_path, "app")
    (tmp_path / "app/index.json").unlink()
    assert run(archive, check=True, image="no/such:image", store=str(tmp_path), layout="app")["changed"]


def test_check_mode_makes_nothing(tmp_path: Path) -> None:
    assert run(archive, check=True, image="no/such:image", store=str(tmp_path / "store"), layout="app")["changed"]
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    answer = run(archive, image="fltestbed/no-such-image:0", store=str(tmp_path / "store"), layout="app")
    assert answer["failed"]
    assert list((tmp_path / "store").iterdir()) == []
