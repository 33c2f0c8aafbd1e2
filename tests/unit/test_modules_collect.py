"""What a host has of a run, packed there and unpacked here."""

import io
import os
import shutil
import tarfile
from base64 import b64decode
from pathlib import Path

import pytest
from ansible_modules import load, run

testbed_collect = load("modules", "testbed_collect")
unpack = load("action", "testbed_collect").unpack


def collected(root: Path, dest: Path, **params: object) -> list[str]:
    given = {"root": str(root), "project": "none", "name": "r1", "logs": [], "dest": str(dest)} | params
    packed: list[str] = unpack(io.BytesIO(b64decode(run(testbed_collect, **given)["archive"])), dest)
    return packed


def test_what_the_serverapp_wrote_arrives(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    model = os.urandom(100_000)
    (folder / "model.pt").write_bytes(model)
    (folder / "rounds.jsonl").write_text('{"round": 1}\n')
    (folder / "something-else").write_text("stays")
    (tmp_path / "secret").write_text("root's")
    (folder / "run.json").symlink_to(tmp_path / "secret")
    assert sorted(collected(tmp_path, tmp_path / "here")) == ["model.pt", "rounds.jsonl"]
    assert (tmp_path / "here" / "model.pt").read_bytes() == model


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no Docker client to ask")
def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    logs = [{"name": "client-a", "services": ["client-a"]}]
    answer = run(
        testbed_collect, root=str(tmp_path), project="no such", name="r1", logs=logs, dest=str(tmp_path / "here")
    )
    assert answer["failed"]


def test_an_archive_writes_nowhere_else(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        testbed_collect.add(archive, "../outside", b"x")
    packed.seek(0)
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(packed, tmp_path / "here")
    assert not (tmp_path / "outside").exists()
