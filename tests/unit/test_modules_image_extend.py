"""testbed_image_extend, on a base that testbed_image_archive wrote."""

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
extend = load("modules", "testbed_image_extend")

FILES = {"usr/bin/tool": "usr/bin/debian-tool", "usr/share/tool": "usr/share/debian"}


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.mtime = len(content), 0o755, 1000, 1700000000
            out.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    layer = tar(tmp_path / "layer", {"etc/base": b"base"}).read_bytes()
    config = {
        "architecture": "arm64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["fltestbed/proxy:1"], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config), "manifest.json": json.dumps(manifest)}
    saved = tar(tmp_path / "saved.tar", {name: text.encode() for name, text in files.items()} | {"layer.tar": layer})
    archive.write_layout(saved, tmp_path / "store", "proxy-1-aarch64", "aarch64")
    return tmp_path / "store"


def make(store: Path, programs: Path, *, check: bool = False, layout: str = "tool-1-aarch64") -> dict[str, Any]:
    return run(
        extend,
        check=check,
        store=str(store),
        base="proxy-1-aarch64",
        layout=layout,
        image="fltestbed/tool:1",
        archive=str(programs),
        files=FILES,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    unpacked = {"./usr/bin/debian-tool": b"tool", "./usr/share/debian/page": b"page", "./usr/bin/other": b"other"}
    return tar(tmp_path / "programs.tar", unpacked)


def test_the_image_is_the_base_and_one_layer(store: Path, programs: Path) -> None:
    assert make(store, programs)["changed"]
    (base,) = json.loads((store / "proxy-1-aarch64/manifest.json").read_text())
    (image,) = json.loads((store / "tool-1-aarch64/manifest.json").read_text())
    assert image["RepoTags"] == ["fltestbed/tool:1"]
    assert image["Layers"][:-1] == base["Layers"], "who has the base downloads the new layer alone"
    content = gzip.decompress((store / image["Layers"][-1]).read_bytes())
    config = json.loads((store / image["Config"]).read_text())
    assert config["architecture"] == "arm64"
    assert config["rootfs"]["diff_ids"][-1] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(content)) as layer:
        assert {member.name: (member.mode, member.uid, member.mtime) for member in layer} == {
            "usr/bin/tool": (0o755, 0, 0),
            "usr/share/tool/page": (0o755, 0, 0),
        }


def test_the_same_programs_make_the_same_image(store: Path, programs: Path) -> None:
    make(store, programs)
    make(store, programs, layout="again")
    assert (store / "tool-1-aarch64/index.json").read_text() == (store / "again/index.json").read_text()


def test_an_image_that_is_there_is_taken_as_done(store: Path, programs: Path) -> None:
    make(store, programs)
    programs.unlink()
    assert not make(store, programs)["changed"]


def test_check_mode_makes_nothing(store: Path, programs: Path) -> None:
    before = sorted(store.rglob("*"))
    assert make(store, programs, check=True)["changed"]
    assert sorted(store.rglob("*")) == before


def test_a_missing_program_is_an_error_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    answer = make(store, tar(tmp_path / "empty.tar", {"usr/bin/other": b"other"}))
    assert answer["failed"] and "usr/bin/debian-tool, usr/share/debian" in answer["msg"]
    assert not (store / "tool-1-aarch64").exists() and not list(store.glob(".image-*"))
