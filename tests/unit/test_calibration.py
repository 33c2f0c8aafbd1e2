"""Calibration: the app's program that trains, and what is made of what it says."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ansible_modules
import numpy as np
import pytest
from small_dataset import images_and_labels

from fltestbed import calibration
from fltestbed.errors import HostsFailed
from fltestbed.experiment import Experiment

APP = Path(__file__).parents[2] / "fl_app"
module = ansible_modules.load("modules", "testbed_calibrate")
EXPERIMENT = Experiment.model_validate({"name": "x", "train": {"batch_size": 32}})
CLIENTS: list[dict[str, Any]] = [
    {"device": "pi", "client": "pi", "cpus": 0.5, "memory": 2**29, "settings": {"batch_size": 12, "width": 0.5}},
    {"device": "pc", "client": "pc-1", "cpus": None, "memory": None, "settings": {}},
]


def test_powers_of_two_and_the_clients_own_batch_size_are_tried() -> None:
    assert calibration.batch_sizes(CLIENTS, EXPERIMENT) == {
        "pi": [8, 12, 16, 32, 64, 128, 256],
        "pc-1": [8, 16, 32, 64, 128, 256],
    }


def answer(client: str, sizes: list[int], **more: Any) -> dict[str, Any]:
    rows = [
        {"batch_size": size, "samples": size * 10, "seconds": 2.0, "threads": 1, "peak_memory_bytes": 2**28 + size}
        | {"cores": 0.48, "throttled": 0.9}
        for size in sizes
    ]
    return {"client": client, "rows": rows, "killed": False, "cpus": None, "memory": None} | more


def test_the_figures_of_the_clients_own_batch_size_come_first() -> None:
    answers = {
        "pi": {"clients": [answer("pi", [8, 12, 16], cpus=0.5, memory=2**29, killed=True)]},
        "pc": {"clients": [answer("pc-1", [8, 16, 32])]},
    }
    found, problems = calibration.calibrations(CLIENTS, EXPERIMENT, answers)
    assert not problems
    assert found["pi"]["samples_per_second"] == 60 and found["pi"]["peak_memory_bytes"] == 2**28 + 12
    assert (found["pi"]["model"], found["pi"]["batch_size"]) == ("cnn", 12)
    assert (found["pi"]["width"], found["pc-1"]["width"]) == (0.5, 1.0)
    assert (found["pi"]["cpus"], found["pi"]["memory"]) == (0.5, 2**29)
    assert [row["batch_size"] for row in found["pi"]["batch_sizes"]] == [8, 12, 16]
    assert found["pc-1"]["batch_size"] == 32 and found["pc-1"]["cpus"] is None


@pytest.mark.parametrize(("cores", "throttled", "slowed"), [(0.48, 0.9, []), (0.3, 0.1, ["pi"]), (0.3, 0.9, [])])
def test_clients_whose_cores_others_had_are_named(cores: float, throttled: float, slowed: list[str]) -> None:
    each = {"cpus": 0.5, "threads": 1, "cores": cores, "throttled": throttled}
    assert calibration.disturbed({"pi": each, "pc": each | {"cpus": None}}) == slowed


@pytest.mark.parametrize(
    ("sizes", "more", "says"),
    [
        ([8], {"killed": True}, r"pc-1: the kernel killed .* batch size of 32 or less; 8 went well"),
        ([8, 16], {}, r"pc-1: a batch of 32 takes too long"),
        ([8, 16, 32], {"cpus": 0.5}, r"pc-1: the kernel does not have its limits"),
    ],
)
def test_a_client_without_a_figure_is_named_with_the_reason(sizes: list[int], more: dict[str, Any], says: str) -> None:
    found, problems = calibration.calibrations(
        CLIENTS, EXPERIMENT, {"pc": {"clients": [answer("pc-1", sizes, **more)]}}
    )
    assert not found
    with pytest.raises(HostsFailed) as raised:
        calibration.require_all(problems)
    assert re.search(says, raised.value.hosts["pc"].message)


def test_what_was_measured_of_other_clients_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    calibration.keep(file, {"pi": {"samples_per_second": 1}, "pc": {"samples_per_second": 2}})
    calibration.keep(file, {"pi": {"samples_per_second": 3}})
    assert json.loads(file.read_text()) == {"pi": {"samples_per_second": 3}, "pc": {"samples_per_second": 2}}


def test_the_program_trains_where_it_was_brought_and_leaves_nothing(tmp_path: Path) -> None:
    """As in a container, with the files and the setup as testbed_calibrate sends them."""
    images, labels = images_and_labels(300, seed=0)
    with (tmp_path / "shard").open("wb") as file:
        np.savez(file, classes=10, train_inputs=images[:, None], train_labels=labels)
    sha256 = hashlib.sha256((tmp_path / "shard").read_bytes()).hexdigest()
    (tmp_path / "shard").rename(tmp_path / f"{sha256}.npz")
    setup = {"model": "cnn", "seed": 1, "optimizer": "sgd", "learning-rate": 0.01, "momentum": 0.9, "width": 0.5}
    setup |= {"sha256": sha256, "batch_sizes": [32, 8, 512], "seconds": 0.2}
    code = json.dumps({str(path.relative_to(APP)): path.read_text() for path in APP.rglob("*.py")}).encode()
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", module.UNPACK, json.dumps(setup), str(len(code))],
        input=code + b"\n",
        env=os.environ | {"FLTESTBED_DATA": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert not done.stdout, "it ends with its input, before it has imported torch"
    process = subprocess.Popen(
        [sys.executable, "-c", module.UNPACK, json.dumps(setup), str(len(code))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"FLTESTBED_DATA": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")},
        cwd=tmp_path,
    )
    with process:
        assert process.stdin and process.stdout
        process.stdin.write(code)
        process.stdin.flush()
        rows = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert [row["batch_size"] for row in rows] == [8, 32]  # the shard has no 512
    assert all(row["seconds"] >= 0.2 and row["samples"] % row["batch_size"] == 0 for row in rows)
    assert not list((tmp_path / "tmp").iterdir())
