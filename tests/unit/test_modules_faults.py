"""What the modules say of a host in trouble: real locks, sockets and damaged files."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_modules import load, run

HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(300)
"""


def test_who_is_at_the_packages_is_named(tmp_path: Path) -> None:
    module, path = load("modules", "testbed_apt_lock"), tmp_path / "lock-frontend"
    assert run(module, paths=[str(path)])["held"] is False
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        answer = run(module, paths=[str(path)])
        holder.kill()
    assert answer["held"] is True
    assert f"(process {holder.pid}) is at this host's packages" in answer["msg"] and str(path) in answer["msg"]
    assert run(module, paths=[str(path)])["held"] is False


@pytest.mark.parametrize(
    "said",
    [
        "driver failed programming external connectivity on endpoint proxy: Bind for 0.0.0.0:{} failed: "
        "port is already allocated",
        "Error starting userland proxy: listen tcp4 0.0.0.0:{}: bind: address already in use",
    ],
)
def test_who_has_the_port_is_named(said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = run(load("modules", "testbed_explain"), root="/", project="fltestbed-x", said=said.format(port))
    assert answer["failed"]
    assert f"port {port}/tcp is held by" in answer["msg"] and "(process " in answer["msg"]


def test_another_testbed_on_the_same_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("modules", "testbed_explain")
    monkeypatch.setattr(module, "port_holder", lambda port: ("the container fltestbed-b-proxy-1", "fltestbed-b"))
    said = "Bind for 0.0.0.0:9092 failed: port is already allocated"
    message = run(module, root="/", project="fltestbed-a", said=said)["msg"]
    assert "the testbed b has this server too" in message and "testbed_fleet_port" in message


def test_a_full_disk_is_said_with_what_is_free() -> None:
    said = "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"
    message = run(load("modules", "testbed_explain"), root="/tmp", project="x", said=said)["msg"]  # noqa: S108
    assert message.startswith("the disk is full: ") and "MB are free at /tmp" in message


def layout(store: Path) -> Path:
    """Write an image of one blob into a store; return the blob."""
    content = b"layer"
    name = hashlib.sha256(content).hexdigest()
    blob = store / "blobs" / "sha256" / name
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content)
    (store / "app").mkdir()
    (store / "app" / "index.json").write_text(json.dumps({"annotations": {"blobs": f"sha256:{name}"}}))
    return blob


@pytest.mark.parametrize("damage", ["bit", "short", "gone"])
def test_a_damaged_image_in_the_cache_is_named_and_made_anew_next_time(tmp_path: Path, damage: str) -> None:
    module, blob = load("modules", "testbed_image_check"), layout(tmp_path)
    assert not run(module, store=str(tmp_path), layout="app")["failed"]
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(b"layes" if damage == "bit" else b"lay")
    answer = run(module, store=str(tmp_path), layout="app")
    assert answer["failed"] and str(blob) in answer["msg"]
    assert not blob.exists() and not (tmp_path / "app" / "index.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the module gives files to users, which root alone may")
def test_a_folder_of_another_testbed_is_refused(tmp_path: Path) -> None:
    module = load("modules", "testbed_tree")
    mine, theirs = {"id": "1", "name": "ann@here"}, {"id": "2", "name": "bob@there"}
    root = tmp_path / "lab"
    files = {"compose.yml": {"content": "x"}}
    assert run(module, root=str(root), files=files, owner=mine)["changed"]
    answer = run(module, root=str(root), files={"compose.yml": {"content": "y"}}, owner=theirs)
    assert answer["failed"] and "that ann@here deployed" in answer["msg"]
    assert (root / "compose.yml").read_text() == "x"
    assert not run(module, root=str(root), files=files, owner=mine)["changed"]
