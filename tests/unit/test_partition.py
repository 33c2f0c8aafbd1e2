"""Splitting a data set: the same every time, nothing lost, nothing shared, nothing half-written."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from small_dataset import images_and_labels, write_idx

from fltestbed import partition
from fltestbed.datasets import IdxFolder
from fltestbed.errors import ExperimentError
from fltestbed.experiment import Dirichlet, Iid

IID = Iid(name="iid")
SKEWED = Dirichlet(name="dirichlet", alpha=0.3)


@pytest.fixture
def source(tmp_path: Path) -> IdxFolder:
    write_idx(tmp_path / "idx", train=2000, test=40)
    return IdxFolder(tmp_path / "idx")


@pytest.mark.parametrize("partitioner", [IID, SKEWED])
def test_same_seed_same_bytes(tmp_path: Path, source: IdxFolder, partitioner: Iid | Dirichlet) -> None:
    sets = [
        partition.ensure(source, partitioner, seed=7, clients=3, cache_dir=tmp_path / name)[0] for name in ("a", "b")
    ]
    assert sets[0].id == sets[1].id
    for one, other in zip([*sets[0].shards, sets[0].test_set], [*sets[1].shards, sets[1].test_set], strict=True):
        content = one.path.read_bytes()
        assert content == other.path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == one.sha256 == other.sha256


@pytest.mark.parametrize("partitioner", [IID, SKEWED])
def test_every_example_is_in_one_place(tmp_path: Path, source: IdxFolder, partitioner: Iid | Dirichlet) -> None:
    made, _ = partition.ensure(source, partitioner, seed=7, clients=3, cache_dir=tmp_path)
    images, labels = [], []
    for shard in made.shards:
        with np.load(shard.path) as arrays:
            assert len(arrays["train_labels"]) == shard.examples
            assert len(arrays["held_out_labels"]) == shard.held_out
            assert abs(shard.held_out / (shard.examples + shard.held_out) - partition.HELD_OUT) < 0.01
            assert arrays["train_images"].dtype == np.uint8
            for part in ("train", "held_out"):
                images += [image.tobytes() for image in arrays[f"{part}_images"]]
                labels += arrays[f"{part}_labels"].tolist()
        assert sum(shard.labels) == shard.examples + shard.held_out
    all_images, all_labels = images_and_labels(2000, seed=0)
    wanted = {image.tobytes(): label for image, label in zip(all_images, all_labels.tolist(), strict=True)}
    assert len(images) == 2000
    assert dict(zip(images, labels, strict=True)) == wanted


def test_the_id_covers_all_that_the_files_depend_on(tmp_path: Path, source: IdxFolder) -> None:
    write_idx(tmp_path / "other", train=1999, test=40)
    ids = {
        partition.ensure(data, partitioner, seed=seed, clients=clients, cache_dir=tmp_path)[0].id
        for data, partitioner, seed, clients in (
            (source, SKEWED, 7, 3),
            (IdxFolder(tmp_path / "other"), SKEWED, 7, 3),
            (source, IID, 7, 3),
            (source, Dirichlet(name="dirichlet", alpha=0.4), 7, 3),
            (source, SKEWED, 8, 3),
            (source, SKEWED, 7, 4),
        )
    }
    assert len(ids) == 6


def test_a_set_is_made_once_and_again_when_damaged(tmp_path: Path, source: IdxFolder) -> None:
    first, made = partition.ensure(source, IID, seed=7, clients=3, cache_dir=tmp_path)
    assert made
    assert partition.ensure(source, IID, seed=7, clients=3, cache_dir=tmp_path) == (first, False)
    first.shards[1].path.write_bytes(b"damaged")
    assert partition.ensure(source, IID, seed=7, clients=3, cache_dir=tmp_path) == (first, True)


def test_a_crash_leaves_nothing(tmp_path: Path, source: IdxFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(partition, "HELD_OUT", None)  # fails after the folder was begun
        with pytest.raises(TypeError):
            partition.ensure(source, IID, seed=7, clients=3, cache_dir=tmp_path)
    assert list((tmp_path / "partitions").iterdir()) == []
    assert partition.ensure(source, IID, seed=7, clients=3, cache_dir=tmp_path)[1]


def spread(parts: list[partition.Indices], labels: partition.Indices) -> float:
    """Return how far the clients' shares of the labels are from equal: 0 to nearly 2."""
    shares = np.array([np.bincount(labels[part], minlength=10) / len(part) for part in parts])
    return float(np.abs(shares - shares.mean(axis=0)).sum(axis=1).mean())


def test_a_smaller_alpha_skews_more() -> None:
    _, labels = images_and_labels(20_000, seed=0)

    def of(partitioner: Iid | Dirichlet) -> float:
        return spread(partition.split(labels, partitioner, 5, np.random.default_rng(1)), labels)

    iid, mild, strong = of(IID), of(Dirichlet(name="dirichlet", alpha=5)), of(Dirichlet(name="dirichlet", alpha=0.1))
    assert iid < 0.1 < mild < strong
    assert strong > 1


def test_iid_shares_are_equal() -> None:
    _, labels = images_and_labels(1000, seed=0)
    parts = partition.split(labels, IID, 3, np.random.default_rng(1))
    assert sorted(map(len, parts)) == [333, 333, 334]


def test_every_client_gets_the_minimum() -> None:
    _, labels = images_and_labels(3000, seed=0)
    for seed in range(20):
        parts = partition.split(labels, Dirichlet(name="dirichlet", alpha=0.2), 4, np.random.default_rng(seed))
        assert min(map(len, parts)) >= partition.MIN_EXAMPLES


def test_what_cannot_be_split() -> None:
    _, labels = images_and_labels(1000, seed=0)
    with pytest.raises(ExperimentError, match="1000 examples are too few for 21 clients of at least 50"):
        partition.split(labels, IID, 21, np.random.default_rng(1))
    with pytest.raises(ExperimentError, match=r"partitioner\.alpha: .* always had fewer than 50 examples"):
        partition.split(labels, Dirichlet(name="dirichlet", alpha=0.001), 15, np.random.default_rng(1))
