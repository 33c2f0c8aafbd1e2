"""Reading IDX files, and what is said when one is damaged or cannot be had."""

import gzip
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from small_dataset import idx, images_and_labels, write_idx

from fltestbed import datasets
from fltestbed.datasets import debian_fashion_mnist
from fltestbed.errors import ExperimentError
from fltestbed.experiment import Data
from fltestbed.formats import Files

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
FASHION = Data(source="folder", name="fashion-mnist", path="x")
INSTALLED = Path("/usr/share/datasets/fashion-mnist").is_dir()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_idx(tmp_path / "idx", train=100, test=20)
    return tmp_path / "idx"


def test_what_was_written_is_read(folder: Path) -> None:
    data = Files(folder, FASHION).load()
    images, labels = images_and_labels(100, seed=0)
    assert np.array_equal(data.train_inputs, images[:, None])
    assert np.array_equal(data.train_labels, labels)
    assert data.train_labels.dtype == np.int64
    assert data.test_inputs.shape == (20, 1, 28, 28)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (IMAGES, b"no gzip", "Not a gzipped file"),
        (IMAGES, gzip.compress(idx(np.zeros((100, 28, 28))))[:-20], "ended before the end-of-stream"),
        (IMAGES, gzip.compress(idx(np.zeros((100, 28, 28)))[:-5]), "78395 bytes of data, but the header says 78400"),
        (IMAGES, gzip.compress(idx(np.zeros((100, 32, 32)))), "its examples are 1 x 32 x 32"),
        (IMAGES, gzip.compress(idx(np.zeros(100))), "no IDX header"),
        (IMAGES, gzip.compress(b""), "no IDX header"),
        (LABELS, gzip.compress(idx(np.zeros(99))), "100 train inputs, but 99 labels"),
        (LABELS, gzip.compress(idx(np.full(100, 10))), "labels from 10 to 10, not 0 to 9"),
    ],
    ids=["plain", "cut", "short", "size", "dimensions", "empty", "fewer", "label"],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        Files(folder, FASHION).load()
    assert said in caught.value.message
    assert str(folder) in caught.value.message


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / LABELS).unlink()
    with pytest.raises(ExperimentError, match=f"{LABELS}: .*No such file"):
        Files(folder, FASHION).load()


def test_the_fingerprint_follows_the_content(folder: Path) -> None:
    before = Files(folder, FASHION).fingerprint()
    assert before == Files(folder, FASHION).fingerprint()
    (folder / LABELS).write_bytes(gzip.compress(idx(np.zeros(100))))
    assert before != Files(folder, FASHION).fingerprint()


def test_the_cache_is_used(tmp_path: Path) -> None:
    write_idx(tmp_path / "data/fashion-mnist", train=100, test=20)
    assert debian_fashion_mnist(tmp_path) == tmp_path / "data/fashion-mnist"


@pytest.mark.skipif(INSTALLED, reason="the package is installed here, so nothing is fetched")
def test_a_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExperimentError, match="there is no apt-get here") as caught:
        debian_fashion_mnist(tmp_path)
    assert str(tmp_path / "data/fashion-mnist") in caught.value.hint


@pytest.mark.skipif(INSTALLED or not shutil.which("apt-get"), reason="needs apt, and the package not installed")
def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real apt, with no package lists and a proxy that refuses."""
    (tmp_path / "empty/partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::State::lists "{tmp_path}/empty"; Acquire::Retries "0";'
        'Acquire::http::Proxy "http://127.0.0.1:9"; Acquire::https::Proxy "http://127.0.0.1:9";'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    with pytest.raises(ExperimentError, match="dataset-fashion-mnist cannot be fetched: E: "):
        debian_fashion_mnist(tmp_path)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_is_looked_for_beside_the_experiment(tmp_path: Path, folder: Path) -> None:
    data = Data(source="folder", name="mine", path="idx")
    assert datasets.source(data, cache_dir=tmp_path / "cache", beside=tmp_path).path == folder
    with pytest.raises(ExperimentError, match=f"there is no {tmp_path}/none"):
        datasets.source(data.model_copy(update={"path": "none"}), cache_dir=tmp_path, beside=tmp_path)


class _Hub:
    """What the hub's client gives: a table whose columns are lists."""

    def __init__(self, dataset: str, partitioners: dict[str, int]) -> None:
        assert (dataset, partitioners) == ("ylecun/mnist", {})

    def load_split(self, part: str) -> dict[str, list[object]]:
        images, labels = images_and_labels(60 if part == "train" else 20, seed=0)
        return {"image": list(images), "label": labels.tolist()}


def test_the_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower Datasets is 500 MB and needs the hub: what it hands over is put in its place here."""
    module = types.ModuleType("flwr_datasets")
    module.__dict__["FederatedDataset"] = _Hub
    data = Data(source="hub", name="mnist")
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)
    files = datasets.source(data, cache_dir=tmp_path, beside=tmp_path)
    assert np.array_equal(files.load().train_inputs, images_and_labels(60, seed=0)[0][:, None])
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    assert datasets.source(data, cache_dir=tmp_path, beside=tmp_path) == files


def test_the_hub_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ExperimentError, match="needs the Python package flwr-datasets") as caught:
        datasets.require(Data(source="hub", name="mnist"), cache_dir=tmp_path, beside=tmp_path)
    assert "pip install 'fltestbed[hub]'" in caught.value.hint
