"""Reading IDX files, and what is said when one is damaged or cannot be had."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_dataset import idx, images_and_labels, write_idx

from fltestbed.datasets import IdxFolder, debian_fashion_mnist
from fltestbed.errors import ExperimentError

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
INSTALLED = Path("/usr/share/datasets/fashion-mnist").is_dir()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_idx(tmp_path / "idx", train=100, test=20)
    return tmp_path / "idx"


def test_what_was_written_is_read(folder: Path) -> None:
    data = IdxFolder(folder).load()
    images, labels = images_and_labels(100, seed=0)
    assert np.array_equal(data.train_images, images)
    assert np.array_equal(data.train_labels, labels)
    assert data.train_labels.dtype == np.int64
    assert data.test_images.shape == (20, 28, 28)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (IMAGES, b"no gzip", "Not a gzipped file"),
        (IMAGES, gzip.compress(idx(np.zeros((100, 28, 28))))[:-20], "ended before the end-of-stream"),
        (IMAGES, gzip.compress(idx(np.zeros((100, 28, 28)))[:-5]), "78395 bytes of data, but the header says 78400"),
        (IMAGES, gzip.compress(idx(np.zeros((100, 32, 32)))), "its images are (32, 32), not (28, 28)"),
        (IMAGES, gzip.compress(idx(np.zeros(100))), "no IDX header"),
        (IMAGES, gzip.compress(b""), "no IDX header"),
        (LABELS, gzip.compress(idx(np.zeros(99))), "100 images, but 99 labels"),
        (LABELS, gzip.compress(idx(np.full(100, 10))), "the label 10"),
    ],
    ids=["plain", "cut", "short", "size", "dimensions", "empty", "fewer", "label"],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        IdxFolder(folder).load()
    assert said in caught.value.message
    assert str(folder) in caught.value.message


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / LABELS).unlink()
    with pytest.raises(ExperimentError, match=f"{LABELS}: .*No such file"):
        IdxFolder(folder).fingerprint()


def test_the_fingerprint_follows_the_content(folder: Path) -> None:
    before = IdxFolder(folder).fingerprint()
    assert before == IdxFolder(folder).fingerprint()
    (folder / LABELS).write_bytes(gzip.compress(idx(np.zeros(100))))
    assert before != IdxFolder(folder).fingerprint()


def test_the_cache_is_used(tmp_path: Path) -> None:
    write_idx(tmp_path / "data/fashion-mnist", train=100, test=20)
    assert debian_fashion_mnist(tmp_path).folder == tmp_path / "data/fashion-mnist"


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
