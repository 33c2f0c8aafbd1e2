"""testbed_image_archive, on an archive as `docker save` writes it."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

archive = load("modules", "testbed_image_archive")
oci = load("module_utils", "testbed_oci")

ARCH = "aarch64"
ZSTD = b"\x28\xb5\x2f\xfd"


def layer(size: int, name: str) -> bytes:
    """Return a tar with one file, as a layer of an image is."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = size
        tar.addfile(info, io.BytesIO(bytes(range(256)) * (size // 256 + 1)))
    return content.getvalue()


def config(layers: list[bytes], architecture: str = "arm64") -> dict[str, Any]:
    diff_ids = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
    return {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}


def save(path: Path, layers: list[bytes], *configs: dict[str, Any]) -> Path:
    """Write an archive as `docker save` does: of an image for each config, all of these layers."""
    names = [f"{number}/layer.tar" for number, _ in enumerate(layers)]
    files = dict(zip(names, layers, strict=True))
    manifest = []
    for each in configs:
        name = f"{each['architecture']}.json"
        files[name] = json.dumps(each).encode()
        manifest.append({"Config": name, "RepoTags": ["fltestbed/app:1"], "Layers": names})
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """Write an image of two layers; the first is larger than what one gzip member takes."""
    layers = [layer(oci.CHUNK + 12345, "usr/lib/large"), layer(100, "etc/small")]
    return save(tmp_path / "saved.tar", layers, config(layers)), layers


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
    archive.write_layout(path, store, "app-1-aarch64", ARCH)
    index = json.loads((store / "app-1-aarch64/index.json").read_text())
    (entry,) = index["manifests"]
    manifest = json.loads(read(store, entry))
    assert manifest["schemaVersion"] == 2
    assert entry["mediaType"] == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert json.loads(read(store, manifest["config"])) == config(layers)
    assert {each["mediaType"] for each in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    assert [gzip.decompress(read(store, each)) for each in manifest["layers"]] == layers
    named = [each["digest"] for each in (entry, manifest["config"], *manifest["layers"])]
    assert index["annotations"]["blobs"].split() == named
    assert blobs(store) == set(named)


def test_docker_load_finds_its_manifest(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    path, layers = saved
    archive.write_layout(path, tmp_path, "app", ARCH)
    (image,) = json.loads((tmp_path / "app/manifest.json").read_text())
    assert image["RepoTags"] == ["fltestbed/app:1"]
    assert json.loads((tmp_path / image["Config"]).read_text()) == config(layers)
    assert [gzip.decompress((tmp_path / name).read_bytes()) for name in image["Layers"]] == layers


def test_the_same_image_has_the_same_digest_and_shares_its_blobs(
    saved: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    archive.write_layout(saved[0], tmp_path, "a", ARCH)
    before = blobs(tmp_path)
    archive.write_layout(saved[0], tmp_path, "b", ARCH)
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()
    assert blobs(tmp_path) == before


def test_an_image_that_is_there_is_taken_as_done(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    archive.write_layout(saved[0], tmp_path, "app", ARCH)
    answer = run(archive, image="no/such:image", store=str(tmp_path), layout="app", arch=ARCH)
    (entry,) = json.loads((tmp_path / "app/index.json").read_text())["manifests"]
    assert (answer["changed"], answer["digest"]) == (False, entry["digest"])
    assert answer["blobs"][0] == entry["digest"] and set(answer["blobs"]) == blobs(tmp_path)


def test_half_an_image_is_not_taken_as_done(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    archive.write_layout(saved[0], tmp_path, "app", ARCH)
    (tmp_path / "app/index.json").unlink()
    assert run(archive, check=True, image="no/such:image", store=str(tmp_path), layout="app", arch=ARCH)["changed"]


def test_check_mode_makes_nothing(tmp_path: Path) -> None:
    answer = run(archive, check=True, image="no/such:image", store=str(tmp_path / "store"), layout="app", arch=ARCH)
    assert answer["changed"]
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    answer = run(archive, image="fltestbed/no-such-image:0", store=str(tmp_path / "store"), layout="app", arch=ARCH)
    assert answer["failed"]
    assert list((tmp_path / "store").iterdir()) == []


def test_layers_that_are_gzip_already_are_not_compressed_again(saved: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    """As an engine with containerd's image store saves them; devices pull the very same blobs."""
    path, layers = saved
    archive.write_layout(path, tmp_path, "plain", ARCH)
    halves = gzip.compress(layers[0][:1000]) + gzip.compress(layers[0][1000:])
    save(path, [halves, gzip.compress(layers[1])], config(layers))
    archive.write_layout(path, tmp_path, "gzipped", ARCH)
    assert (tmp_path / "plain/index.json").read_bytes() == (tmp_path / "gzipped/index.json").read_bytes()


def make(path: Path, arch: str = ARCH) -> dict[str, Any]:
    return run(archive, image="fltestbed/app:1", archive=str(path), store=str(path.parent), layout="app", arch=arch)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"", "its layers are not those that its config names"),
        (ZSTD + b"whatever", "compressed with zstd, which cannot be read here"),
        (gzip.compress(b"layer")[:-6], "no archive of an image"),
    ],
    ids=["another", "zstd", "cut off"],
)
def test_a_layer_that_is_not_what_it_is_to_be_is_refused(tmp_path: Path, first: bytes, said: str) -> None:
    layers = [layer(100, "etc/small")]
    answer = make(save(tmp_path / "saved.tar", [first], config(layers)))
    assert answer["failed"] and said in answer["msg"] and str(tmp_path / "saved.tar") in answer["msg"]
    assert not (tmp_path / "app").exists() and not list(tmp_path.glob(".image-*"))


def test_an_image_for_other_machines_is_refused_with_what_to_do(tmp_path: Path) -> None:
    layers = [layer(100, "etc/small")]
    path = save(tmp_path / "saved.tar", layers, config(layers, "amd64"))
    answer = make(path)
    assert answer["failed"] and "it is for amd64, and the aarch64 host needs arm64" in answer["msg"]
    assert "docker pull --platform linux/arm64 fltestbed/app:1" in answer["msg"]
    assert make(path, "x86_64")["changed"]


def test_of_an_archive_for_several_architectures_the_hosts_own_is_taken(tmp_path: Path) -> None:
    layers = [layer(100, "etc/small")]
    assert make(save(tmp_path / "saved.tar", layers, *(config(layers, each) for each in ("amd64", "arm64"))))["changed"]
    (image,) = json.loads((tmp_path / "app/manifest.json").read_text())
    assert json.loads((tmp_path / image["Config"]).read_text())["architecture"] == "arm64"


def test_the_user_of_the_connection_may_fetch_what_root_wrote(saved: tuple[Path, list[bytes]]) -> None:
    before = os.umask(0o077)
    try:
        make(saved[0])
    finally:
        os.umask(before)
    folder = saved[0].parent
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (folder / "app", *folder.glob("app/*")))
    assert (folder / "blobs/sha256").stat().st_mode & 0o055 == 0o055
