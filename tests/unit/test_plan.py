"""What is found wrong with a run before a host is touched: here, a model that cannot take the data."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ready_data

from fltestbed import plan
from fltestbed.errors import ExperimentError

ROOT = Path(__file__).parents[2]
CLIENTS: list[dict[str, Any]] = [
    {"device": name, "client": name, "cpus": None, "memory": None, "settings": {}, "data": None} for name in "ab"
]


def resolve(folder: Path, text: str, *settings: str) -> plan.Plan:
    file = folder / "mine.yml"
    file.write_text(f"name: mine\n{text}\n")
    return plan.resolve(file, settings, app=None, content_dir=ROOT)


def prepare(wanted: plan.Plan, folder: Path) -> dict[str, Any]:
    return plan.prepare(wanted, CLIENTS, cache_dir=folder / "cache", calibration=folder / "none.json")


def test_a_model_that_is_too_large_for_the_images(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        resolve(tmp_path, "rounds: 1\nmodel: vgg-11")
    said = f"{tmp_path}/mine.yml:3: model: vgg-11 takes 32 at least a side, and an example is 28 by 28"
    assert caught.value.message == said
    able = "cnn, cnn-deep, cnn-dropout, cnn-quickstart, mlp, mobilenet-v2, resnet-18"
    assert caught.value.hint == f"write another model, as {able}, or other data"
    assert resolve(tmp_path, f"model: vgg-11\ndata: {{source: folder, name: cifar-10, path: {tmp_path}}}").experiment


def test_a_model_of_text_and_images(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        resolve(tmp_path, "model: cnn", "model=lstm")
    assert caught.value.message == "setting 'model=lstm': model: lstm takes text, and the data are images"


def test_data_that_are_not_known_by_name_are_looked_at(tmp_path: Path) -> None:
    ready_data.write_data("reddit", tmp_path / "texts")
    text = f"data: {{source: folder, name: texts, path: {tmp_path}/texts}}"
    assert prepare(resolve(tmp_path, text, "model=lstm"), tmp_path)["partitions"]
    with pytest.raises(ExperimentError) as caught:
        prepare(resolve(tmp_path, f"{text}\nmodel: cnn"), tmp_path)
    assert caught.value.message == f"{tmp_path}/mine.yml:3: model: cnn takes images, and the data are text"
    assert caught.value.hint == "write another model, as lstm, or other data"


def test_the_smaller_side_counts(tmp_path: Path) -> None:
    images = np.zeros((200, 40, 31), dtype=np.uint8)
    labels = np.arange(200) % 2
    np.savez(tmp_path / "wide.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    text = f"data: {{source: folder, name: wide, path: {tmp_path}/wide.npz}}"
    assert prepare(resolve(tmp_path, text, "model=resnet-18"), tmp_path)["partitions"]
    with pytest.raises(ExperimentError, match="vgg-11 takes 32 at least a side, and an example is 40 by 31"):
        prepare(resolve(tmp_path, text, "model=vgg-11"), tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('was run')\nDIMENSIONS = 3\nLEAST = 29", "takes 29 at least a side"),
        ("DIMENSIONS, LEAST = 1, 1", "takes text, and the data are images"),
        ("DIMENSIONS, LEAST = numbers()", None),
        ("def build(): pass", None),
        ("DIMENSIONS =", None),
    ],
)
def test_a_model_of_ones_own_is_read_and_not_run(tmp_path: Path, code: str, said: str | None) -> None:
    own = shutil.copytree(ROOT / "fl_app", tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    (own / "testbed_app/nets/mine.py").write_text(code)
    if said is None:
        assert resolve(tmp_path, "app: own\nmodel: mine").experiment
        return
    with pytest.raises(ExperimentError, match=said):
        resolve(tmp_path, "app: own\nmodel: mine")
