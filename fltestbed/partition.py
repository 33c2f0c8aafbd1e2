"""Splits a data set into one shard a client, the same for the same seed, and keeps the files by content."""

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fltestbed.errors import ExperimentError
from fltestbed.experiment import (
    MIN_EXAMPLES,
    ByGroup,
    Dirichlet,
    Emd,
    Iid,
    LimitLabels,
    NLabels,
    Partitioner,
    QSampler,
    Quantity,
)
from fltestbed.formats import Files

HELD_OUT = 0.2  # the share of a client's examples that it never trains on
_MAX_DRAWS = 1000
_FORMAT = 2  # raise it when the content of the files changes for the same data and seed

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """A file of one client, or of the server's test set.

    A client's file holds `train_inputs`, `train_labels`, `held_out_inputs`, `held_out_labels`; the test set's holds
    `inputs`, `labels`; both hold `classes`. The arrays are those of a formats.Dataset.
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
    source: Files, partitioner: Partitioner, *, seed: int, clients: int, cache_dir: Path
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
    parts = split(data.train_labels, partitioner, clients, rng, groups=data.train_groups)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        new = Path(temporary) / "set"
        new.mkdir()
        shards = []
        classes = np.array(data.classes)
        for number, part in enumerate(parts):
            held_out, train = np.split(part, [round(len(part) * HELD_OUT)])
            sha256 = _write(
                new / f"{number}.npz",
                classes=classes,
                train_inputs=data.train_inputs[train],
                train_labels=data.train_labels[train],
                held_out_inputs=data.train_inputs[held_out],
                held_out_labels=data.train_labels[held_out],
            )
            labels = np.bincount(data.train_labels[part], minlength=data.classes).tolist()
            shards.append(Shard(Path(f"{number}.npz"), sha256, len(train), len(held_out), labels))
        sha256 = _write(new / "test.npz", classes=classes, inputs=data.test_inputs, labels=data.test_labels)
        labels = np.bincount(data.test_labels, minlength=data.classes).tolist()
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
    partitioner: Partitioner,
    clients: int,
    rng: np.random.Generator,
    minimum: int = MIN_EXAMPLES,
    groups: NDArray[np.int64] | None = None,
) -> list[Indices]:
    """Return for each client the shuffled indices of its examples: no example is in two places.

    All examples are used, except where a number or a distance is asked for that some have to be left out for. A random
    split that leaves a client with fewer than `minimum` examples is drawn anew. Raises ExperimentError when no split is
    as the partitioner says; docs/reference-experiments.md has the definitions and where they come from.
    """
    if clients * minimum > len(labels):
        raise ExperimentError(
            f"{len(labels)} examples are too few for {clients} clients of at least {minimum}", "use fewer clients"
        )
    for _ in range(_MAX_DRAWS if isinstance(partitioner, Dirichlet | Quantity) else 1):
        parts = _draw(labels, partitioner, clients, rng, groups)
        if min(map(len, parts)) >= minimum:
            return [rng.permutation(part) for part in parts]
    if isinstance(partitioner, Dirichlet | Quantity):
        raise ExperimentError(
            f"partitioner.alpha: in {_MAX_DRAWS} draws with alpha {partitioner.alpha}, one of {clients} clients always "
            f"had fewer than {minimum} examples",
            "use a larger alpha or fewer clients",
        )
    least = min(range(clients), key=lambda client: len(parts[client]))
    raise ExperimentError(
        f"partitioner: with {partitioner.name}, client {least + 1} of {clients} would have {len(parts[least])} "
        f"examples, and {minimum} are the least",
        "use fewer clients, or another value for the partitioner",
    )


def _draw(
    labels: NDArray[np.int64],
    partitioner: Partitioner,
    clients: int,
    rng: np.random.Generator,
    groups: NDArray[np.int64] | None,
) -> list[Indices]:
    """Return one split, whatever the clients get."""
    match partitioner:
        case Iid():
            return _equal(rng.permutation(len(labels)), clients, partitioner.examples)
        case Quantity():
            order, shares = rng.permutation(len(labels)), rng.dirichlet(np.full(clients, partitioner.alpha))
            return np.split(order, (np.cumsum(shares)[:-1] * len(labels)).astype(np.int64))
        case LimitLabels():
            return _limited(labels, partitioner.labels, clients, rng)
        case ByGroup():
            return _grouped(groups, clients, rng)
        case Emd():
            return _distant(labels, partitioner.emd, clients, rng)
        case Dirichlet():
            shares_of = [rng.dirichlet(np.full(clients, partitioner.alpha)) for _ in np.unique(labels)]
        case QSampler():
            shares_of = _q_shares(len(np.unique(labels)), partitioner.q, clients)
        case NLabels():
            shares_of = _n_label_shares(len(np.unique(labels)), partitioner.labels, clients)
    pieces = [
        np.split(rng.permutation(np.flatnonzero(labels == label)), (np.cumsum(share)[:-1] * count).astype(np.int64))
        for label, count, share in zip(*np.unique(labels, return_counts=True), shares_of, strict=True)
    ]
    return [np.concatenate(each) for each in zip(*pieces, strict=True)]


def _equal(order: Indices, clients: int, examples: int | None) -> list[Indices]:
    """Cut the examples into equal parts, or into parts of so many."""
    if examples is None:
        return np.array_split(order, clients)
    if examples * clients > len(order):
        raise ExperimentError(
            f"partitioner.examples: {clients} clients with {examples} examples each need {examples * clients}, and the "
            f"data set has {len(order)}",
            f"use at most {len(order) // clients}, or fewer clients",
        )
    return np.split(order[: examples * clients], clients)


def _limited(labels: NDArray[np.int64], number: int, clients: int, rng: np.random.Generator) -> list[Indices]:
    """McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017."""
    order = rng.permutation(len(labels))
    pieces = np.array_split(order[np.argsort(labels[order], kind="stable")], clients * number)
    dealt = rng.permutation(len(pieces)).reshape(clients, number)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]


def _q_shares(classes: int, q: float, clients: int) -> list[NDArray[np.float64]]:
    """Fang et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, USENIX Security 2020.

    A label that is no client's main label, or every client's, goes evenly to all.
    """
    shares = []
    for label in range(classes):
        mains = np.arange(clients) % classes == label
        if mains.all() or not mains.any():
            shares.append(np.full(clients, 1 / clients))
        else:
            shares.append(np.where(mains, q / mains.sum(), (1 - q) / (~mains).sum()))
    return shares


def _n_label_shares(classes: int, number: int, clients: int) -> list[NDArray[np.float64]]:
    """Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022, section 4 (#C=k).

    Client i has the labels i * number, ..., i * number + number - 1, counted round: every label has as many owners as
    every other, or one more.
    """
    if number > classes:
        raise ExperimentError(
            f"partitioner.labels: a client cannot have {number} labels, as the data set has {classes}",
            f"use at most {classes}",
        )
    if number * clients < classes:
        raise ExperimentError(
            f"partitioner.labels: {clients} clients with {number} labels each have {number * clients} of the {classes} "
            "labels: nobody would train on the others",
            f"use at least {-(-classes // clients)}, or more clients",
        )
    owns = np.zeros((classes, clients))
    for client in range(clients):
        owns[(client * number + np.arange(number)) % classes, client] = 1
    return list(owns / owns.sum(axis=1, keepdims=True))


def _distant(labels: NDArray[np.int64], distance: float, clients: int, rng: np.random.Generator) -> list[Indices]:
    """Give every client as many examples, its shares of the labels a mixture of all examples' and one label's.

    The distance is that of Zhao et al., Federated Learning with Non-IID Data, 2018, section 3.2: the sum over the
    labels of the absolute differences. The one label is another one for each client, in turn.
    """
    _, counts = np.unique(labels, return_counts=True)
    everywhere = counts / counts.sum()
    mains = np.arange(clients) % len(counts)
    most = 2 * (1 - everywhere[mains].max())
    if distance > most:
        raise ExperimentError(
            f"partitioner.emd: a client with one label alone is {most:.3g} away from all examples, and {distance:g} is "
            "more",
            f"use at most {most:.3g}",
        )
    weights = distance / (2 * (1 - everywhere[mains]))
    shares = (1 - weights[:, None]) * everywhere + weights[:, None] * np.eye(len(counts))[mains]
    size = int(np.min(counts / np.maximum(shares.sum(axis=0), np.finfo(float).tiny)))
    wanted = np.floor(shares * size + 1e-9).astype(np.int64)
    pieces = [
        np.split(rng.permutation(np.flatnonzero(labels == label)), np.cumsum(wanted[:, column]))[:-1]
        for column, label in enumerate(np.unique(labels))
    ]
    return [np.concatenate(each) for each in zip(*pieces, strict=True)]


def _grouped(groups: NDArray[np.int64] | None, clients: int, rng: np.random.Generator) -> list[Indices]:
    """Give each group, the largest first, to the client that has the fewest examples."""
    if groups is None:
        raise ExperimentError(
            "partitioner: by-group needs examples that belong together, and this data set does not say which do",
            "use a text with one file a writer, or another partitioner",
        )
    names, counts = np.unique(groups, return_counts=True)
    if len(names) < clients:
        raise ExperimentError(
            f"partitioner: {len(names)} groups cannot be given to {clients} clients", "use fewer clients, or dirichlet"
        )
    order = rng.permutation(len(names))
    hands: list[list[int]] = [[] for _ in range(clients)]
    held = np.zeros(clients, dtype=np.int64)
    for place in order[np.argsort(-counts[order], kind="stable")]:
        hands[least := int(held.argmin())].append(int(names[place]))
        held[least] += counts[place]
    return [np.flatnonzero(np.isin(groups, hand)) for hand in hands]


def _write(path: Path, **arrays: NDArray[np.generic]) -> str:
    """Write an .npz file that has the same bytes for the same arrays on every machine, and return its SHA-256.

    It is not compressed: the bytes would depend on the zlib at hand, and a device would unpack it for every message.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
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
