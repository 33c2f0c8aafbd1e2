"""Data for the ready experiments: small files in the formats of data sets that not every machine can have."""

import zlib
from pathlib import Path

import numpy as np
from small_dataset import write_idx


def write_data(name: str, folder: Path) -> Path:
    """Write a data set with what is known of it, in its own format."""
    if name.startswith("cifar"):
        _write_cifar(folder, fine=name == "cifar-100")
    elif name == "reddit":
        _write_texts(folder)
    else:
        write_idx(folder, train=200, test=100)
    return folder


def settings(experiment: str, model: str, data: Path) -> list[str]:
    """Return what makes an experiment train on such data for two rounds, with a loss that falls."""
    large = model in ("mobilenet-v2", "resnet-18", "vgg-11")
    return [
        *("rounds=2", "data.source=folder", f"data.path={data}", "min_clients=null"),
        *(["partitioner.examples=100"] if experiment == "lightning-simulation" else []),
        *(f"train.data_fraction={0.5 if large else 1}", f"train.local_epochs={1 if large else 3}"),
        *("train.batch_size=8", "train.learning_rate=0.005"),
    ]


def _write_cifar(folder: Path, *, fine: bool) -> None:
    """Write CIFAR's binary version: a bright row tells the label, of the hundred ones of it a bright column too."""
    folder.mkdir(parents=True)
    parts = ["train", "test"] if fine else [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for part in parts:
        rng = np.random.default_rng(zlib.crc32(part.encode()))
        labels = np.arange(40 if part.startswith("data") else 200 if part == "train" else 100) % (100 if fine else 10)
        pixels = rng.integers(0, 60, (len(labels), 3, 32, 32), dtype=np.uint8)
        each = np.arange(len(labels))
        pixels[each, :, 3 * (labels % 10) + 2] = 220
        if fine:
            pixels[each, :, :, 3 * (labels // 10) + 2] = 220
        heads = labels.astype(np.uint8)[:, None]
        rows = [np.zeros_like(heads)] * fine + [heads, pixels.reshape(len(labels), -1)]
        (folder / f"{part}.bin").write_bytes(np.concatenate(rows, axis=1).tobytes())


def _write_texts(folder: Path) -> None:
    """Write texts of four writers who count."""
    folder.mkdir(parents=True)
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    for number in range(4):
        (folder / f"writer-{number}.txt").write_text(" ".join(words[place % len(words)] for place in range(1500)))
