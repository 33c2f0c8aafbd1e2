"""Splits a data set into one shard a client, the same for the same seed, and keeps the files by content."""

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fltestbed.datasets import DataSource
from fltestbed.errors import ExperimentError
from fltestbed.experiment import MIN_EXAMPLES, Dirichlet, Iid

HELD_OUT = 0.2  # the share of a client's examples that it never trains on
_MAX_DRAWS = 1000
_FORMAT = 1  # raise it when the content of the files changes for the same data and seed

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """A file of one client, or of the server's test set.

    A client's file holds `train_images`, `train_labels`, `held_out_images`, `held_out_labels`; the test set's holds
    `images`, `labels`. Images: uint8 (n, 28, 28). Labels: int64 (n,).
    """

    path: Path
    sha256: str
    examples: int  # to train on; for the test set, all
    held_out: int
    labels: list[int]  # how many examples there are of each label


@dataclass(frozen=True)
class PartitionSet:
    """The shards in the order of the clients, and the test set. `id` covers everything that the files depend on."""

    id: str
    shards: list[Shard]
    test_set: Shard


def ensure(
    source: DataSource, partitioner: Iid | Dirichlet, *, seed: int, clients: int, cache_dir: Path
) -> tuple[PartitionSet, bool]:
    """Return the partition set and whether it had to be made, as it was not in `cache_dir`/partitions or was damaged.

    Raises ExperimentError when the data cannot be split like that.
    """
    covers = {
        "format": _FORMAT,
        "data": source.fingerprint(),
        "partitioner": partitioner.model_dump(),
        "seed": seed,
        "clients": clients,
    }
    set_id = hashlib.sha256(json.dumps(covers, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / "partitions" / set_id
    if found := _read(folder):
        return found, False

    data = source.load()
    rng = np.random.default_rng(seed)
    parts = split(data.train_labels, partitioner, clients, rng)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        new = Path(temporary) / "set"
        new.mkdir()
        shards = []
        for number, part in enumerate(parts):
            held_out, train = np.split(part, [round(len(part) * HELD_OUT)])
            sha256 = _write(
                new / f"{number}.npz",
                train_images=data.train_images[train],
                train_labels=data.train_labels[train],
                held_out_images=data.train_images[held_out],
                held_out_labels=data.train_labels[held_out],
            )
            labels = np.bincount(data.train_labels[part], minlength=10).tolist()
            shards.append(Shard(Path(f"{number}.npz"), sha256, len(train), len(held_out), labels))
        sha256 = _write(new / "test.npz", images=data.test_images, labels=data.test_labels)
        labels = np.bincount(data.test_labels, minlength=10).tolist()
        test_set = Shard(Path("test.npz"), sha256, len(data.test_labels), 0, labels)
        content = {"id": set_id, "covers": covers, "shards": shards, "test_set": test_set}
        (new / "set.json").write_text(json.dumps(content, indent=1, default=_plain), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    made = _read(folder)
    if made is None:
        raise ExperimentError(f"{folder}: was damaged while it was written", "check the disk and run again")
    return made, True


def split(
    labels: NDArray[np.int64],
    partitioner: Iid | Dirichlet,
    clients: int,
    rng: np.random.Generator,
    minimum: int = MIN_EXAMPLES,
) -> list[Indices]:
    """Return for each client the shuffled indices of its examples; together they are all examples, each once.

    Dirichlet: for each label, the clients' shares are one draw from a symmetric Dirichlet distribution (Yurochkin et
    al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019, section 4). A split that leaves a
    client with fewer than `minimum` examples is drawn anew.
    """
    if clients * minimum > len(labels):
        raise ExperimentError(
            f"{len(labels)} examples are too few for {clients} clients of at least {minimum}", "use fewer clients"
        )
    if isinstance(partitioner, Iid):
        return np.array_split(rng.permutation(len(labels)), clients)
    of_label = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_MAX_DRAWS):
        shares = [_shares(indices, partitioner.alpha, clients, rng) for indices in of_label]
        parts = [np.concatenate(pieces) for pieces in zip(*shares, strict=True)]
        if min(map(len, parts)) >= minimum:
            return [rng.permutation(part) for part in parts]
    raise ExperimentError(
        f"partitioner.alpha: in {_MAX_DRAWS} draws with alpha {partitioner.alpha}, one of {clients} clients always had "
        f"fewer than {minimum} examples",
        "use a larger alpha or fewer clients",
    )


def _shares(indices: Indices, alpha: float, clients: int, rng: np.random.Generator) -> Sequence[Indices]:
    cuts = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(indices)
    return np.split(rng.permutation(indices), cuts.astype(np.int64))


def _write(path: Path, **arrays: NDArray[np.generic]) -> str:
    """Write an .npz file that has the same bytes for the same arrays on every machine, and return its SHA-256.

    It is not compressed: the bytes would depend on the zlib at hand, and a device would unpack it for every message.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> PartitionSet | None:
    """Return the set that lies in `folder`, or None if it is not there or one of its files is damaged."""
    try:
        content = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        shards = [Shard(**{**shard, "path": folder / shard["path"]}) for shard in content["shards"]]
        test_set = Shard(**{**content["test_set"], "path": folder / content["test_set"]["path"]})
        if any(_sha256(shard.path) != shard.sha256 for shard in [*shards, test_set]):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PartitionSet(content["id"], shards, test_set)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else asdict(value)  # type: ignore[call-overload]
