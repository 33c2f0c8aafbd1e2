"""Data that lie on the devices: what the clients tell of them, what is refused, and a run on them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from ansible_modules import load
from pyarrow import parquet
from small_dataset import images_and_labels, write_npz

from fltestbed import device_data, experiment, inventory, plan
from fltestbed.errors import ExperimentError, InventoryError

ROOT = Path(__file__).parents[2]
DEVICES = [
    {"device": "pi-1", "client": "pi-1", "cpus": None, "memory": None, "settings": {}, "data": "/srv/a"},
    {"device": "pi-2", "client": "pi-2", "cpus": None, "memory": None, "settings": {}, "data": "/srv/b"},
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "own.npz"
    write_npz(file, seed=3)
    monkeypatch.setenv("FLTESTBED_DEVICE_DATA", str(file))
    return file


def test_a_client_tells_numbers_alone(own: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "fltestbed.device_data", "bars"], check=True, capture_output=True, text=True
    ).stdout
    report = json.loads(told)
    assert (report["examples"], report["held_out"], report["shape"]) == (300, 60, [1, 28, 28])
    assert (len(report["labels"]), sum(report["labels"]), report["labels"][3]) == (10, 300, 0)
    arrays = device_data.load("bars", report["sha256"], 12)
    assert arrays["classes"] == 12
    assert arrays["train_inputs"].shape == (300, 1, 28, 28)
    assert len(arrays["held_out_labels"]) == 60


def test_what_changed_since_is_not_trained_on(own: Path) -> None:
    sha256 = device_data.report("bars")["sha256"]
    write_npz(own, seed=4)
    with pytest.raises(ExperimentError, match="is not what it was when the run began"):
        device_data.load("bars", sha256, 10)


@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:900]), "bars", "own.npz: the data set cannot be used"),
        (lambda file: file.unlink(), "bars", "own.npz: there is no data set in a known format"),
        (lambda file: None, "cifar-10", "its examples are 1 x 28 x 28, those of cifar-10 3 x 32 x 32"),
    ],
)
def test_data_that_cannot_be_used(own: Path, damage: Any, name: str, said: str) -> None:
    damage(own)
    done = subprocess.run(
        [sys.executable, "-m", "fltestbed.device_data", name], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr


def test_labels_that_the_train_part_lacks_are_labels(own: Path) -> None:
    images, labels = images_and_labels(40, seed=0)
    np.savez(own, x_train=images, y_train=labels % 8, x_test=images, y_test=labels)
    assert device_data.report("bars")["labels"][8:] == [0, 0]


@pytest.mark.parametrize("package", ["pyarrow", "PIL"])
def test_parquet_takes_packages_that_the_image_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    images, labels = images_and_labels(4, seed=0)
    for part in ("train", "test"):
        rows = {"image": [image.tobytes() for image in images], "label": labels.tolist()}
        parquet.write_table(pyarrow.table(rows), tmp_path / f"{part}.parquet")
    monkeypatch.setenv("FLTESTBED_DEVICE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExperimentError, match=f"and not both are here: .*{package}") as caught:
        device_data.report("bars")
    assert caught.value.hint == (
        "write images_extra_requirements: [pyarrow, pillow] into the inventory, and run fltestbed up"
    )


def test_labels_by_folder_would_differ_from_device_to_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "train/cat/1.png").touch()
    monkeypatch.setenv("FLTESTBED_DEVICE_DATA", str(tmp_path))
    with pytest.raises(ExperimentError, match="differs from device to device"):
        device_data.report("pets")


def test_an_inventory_names_a_path() -> None:
    [client] = inventory.resolve_clients("pi-1", {"testbed_client": {"data": "/srv/own"}}, {})
    assert client["data"] == "/srv/own"
    for wrong in ("srv/own", "/srv/own data", "/a:b", 7):
        with pytest.raises(InventoryError, match="data cannot be"):
            inventory.resolve_clients("pi-1", {"testbed_client": {"data": wrong}}, {})
    with pytest.raises(InventoryError, match="unknown key 'data'"):
        inventory.resolve_clients("pi-1", {"testbed_profile": "a"}, {}, {"a": {"cpus": 1, "data": "/srv"}})


def test_the_plan_has_no_data(tmp_path: Path) -> None:
    file = tmp_path / "own.yml"
    file.write_text("name: own\ndata: {source: device, name: bars}\n")
    wanted = plan.resolve(file, [], app=None, content_dir=ROOT)
    places = {"cache_dir": tmp_path / "cache", "calibration": tmp_path / "calibration.json"}
    prepared = plan.prepare(wanted, DEVICES, **places)
    assert prepared["test_set"] is prepared["partitions"][1]["sha256"] is None
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ExperimentError, match="names no data of pi-2"):
        plan.prepare(wanted, [DEVICES[0], DEVICES[1] | {"data": None}], **places)
    reports = {
        "pi-1": {"sha256": "a", "examples": 3, "held_out": 1, "labels": [1, 2], "shape": [1, 28, 28]},
        "pi-2": {"sha256": "b", "examples": 3, "held_out": 1, "labels": [0, 1, 2], "shape": [1, 28, 28]},
    }
    hostvars = {name: {"__run_device_data": {name: report}} for name, report in reports.items()}
    filters = load("filter", "testbed").FilterModule().filters()
    known = filters["with_device_data"](prepared, hostvars)
    assert filters["shards_of"](known, "pi-1", True) == {}
    sent = filters["run_plan"](known, "r", DEVICES)
    assert sent["data"] == {"classes": 3, "shape": [1, 28, 28]}
    assert [client["partition"]["labels"] for client in sent["clients"]] == [[1, 2, 0], [0, 1, 2]]
    assert filters["with_device_data"](prepared, {"pi-1": {}, "pi-2": {}}) == prepared


@pytest.mark.parametrize("sizes", [(28, 28), (28, 32)])
def test_a_run_needs_examples_of_one_shape(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """The task of the real playbook, with a server that has no clients first, and an engine that prints reports."""
    for device, size in zip(DEVICES, sizes, strict=True):
        report = {"sha256": "a", "examples": 3, "held_out": 1, "labels": [3], "shape": [1, size, size]}
        (tmp_path / f"lab-client-{device['client']}-1").write_text(json.dumps(report))
    (tmp_path / "docker").write_text(f'#!/bin/sh\ncat "{tmp_path}/$2"\n')
    (tmp_path / "docker").chmod(0o755)
    tasks = [
        task
        for play in yaml.safe_load((ROOT / "playbooks/run.yml").read_text())
        for task in play["tasks"]
        if task["name"] == "Look at the data that lie on the devices"
    ]
    prepared = {
        "experiment": {"data": {"source": "device", "name": "bars"}},
        "partitions": [{"device": device["device"], "client": device["client"]} for device in DEVICES],
    }
    hosts = {device["device"]: {"testbed_host_clients": [device]} for device in DEVICES}
    inventory = {
        "all": {
            "vars": {"ansible_connection": "local", "testbed_superlink_host": "server", "testbed_project": "lab"},
            "children": {
                "testbed": {
                    "children": {
                        "superlink": {"hosts": {"server": {"testbed_host_clients": [], "__run_prepared": prepared}}},
                        "supernodes": {"hosts": hosts},
                    }
                }
            },
        }
    }
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "testbed", "gather_facts": False, "tasks": tasks}]))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.yml", "play.yml"],
        cwd=tmp_path,
        env=os.environ
        | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    refused = (
        "The clients' examples differ in shape, and one model cannot take them: {'pi-1': [1, 28, 28], 'pi-2':" in said
    )
    assert (done.returncode != 0, refused) == (sizes[0] != sizes[1], sizes[0] != sizes[1]), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {source: device, path: /srv}", "of the source device, the inventory says where"),
        (
            "strategy: {name: fedbuff}\nprivacy: {name: client-fixed}",
            "Flower's wrappers take all clients to begin with",
        ),
        (
            "strategy: {name: heterofl}\nprivacy: {name: client-fixed}",
            "one model, and those of heterofl do not",
        ),
        ("data: {source: device}\npartitioner: {name: dirichlet}", "data that lie on the devices are not split"),
    ],
)
def test_an_experiment_that_asks_for_what_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.yml"
    file.write_text(f"name: own\n{text}\n")
    with pytest.raises(ExperimentError, match=said):
        experiment.load(file)


def test_images_of_another_kind_are_those_of_a_folder(own: Path) -> None:
    images, labels = images_and_labels(20, seed=0)
    np.savez(own, x_train=images, y_train=labels, x_test=images, y_test=labels + 5)
    with pytest.raises(ExperimentError, match="labels from"):
        device_data.report("fashion-mnist")
