"""A small data set in the IDX format that can be learnt: a label is a bright row."""

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def images_and_labels(number: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return noisy images of shape (number, 28, 28) whose bright row tells the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, number)
    images = rng.integers(0, 60, (number, 28, 28), dtype=np.uint8)
    images[np.arange(number), 2 * labels + 3] = 220
    return images, labels


def idx(array: NDArray[np.generic]) -> bytes:
    """Return an array as the content of an IDX file of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, *, train: int, test: int) -> None:
    """Write the four files of a data set like MNIST."""
    folder.mkdir(parents=True)
    for part, number, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = images_and_labels(number, seed)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def write_npz(file: Path, *, seed: int, train: int = 300, test: int = 60) -> None:
    """Write a data set of which label `seed` is missing."""
    parts = {}
    for part, number in (("train", train), ("test", test)):
        images, labels = images_and_labels(2 * number, 2 * seed + (part == "test"))
        kept = np.flatnonzero(labels != seed)[:number]
        parts |= {f"x_{part}": images[kept], f"y_{part}": labels[kept]}
    np.savez(file, allow_pickle=False, **parts)
