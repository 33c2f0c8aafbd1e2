"""Data sets: a source brings the files to the controller's cache, and reads them."""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fltestbed.errors import ExperimentError


@dataclass(frozen=True)
class Dataset:
    """Images: uint8 of shape (n, 28, 28). Labels: int64 of shape (n,), from 0 to 9."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


class DataSource(Protocol):
    """A data set whose files lie on the controller."""

    def fingerprint(self) -> str:
        """Return a hash of the content, without reading it into arrays."""

    def load(self) -> Dataset:
        """Return the arrays. Raises ExperimentError when a file is missing or corrupt."""


@dataclass(frozen=True)
class IdxFolder:
    """The four gzipped IDX files of MNIST and its relatives. The format: https://yann.lecun.org/exdb/mnist/"""

    folder: Path

    _NAMES = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )

    def complete(self) -> bool:
        """Return whether all four files are there."""
        return all((self.folder / name).is_file() for name in self._NAMES)

    def fingerprint(self) -> str:
        """Return a hash over the four files as they are on the disk."""
        digest = hashlib.sha256()
        for name in self._NAMES:
            digest.update(hashlib.sha256(self._bytes(name)).digest())
        return digest.hexdigest()

    def load(self) -> Dataset:
        """Return the arrays. Raises ExperimentError when a file is missing or corrupt."""
        train_images, train_labels, test_images, test_labels = (self._array(name) for name in self._NAMES)
        for images, labels, part in ((train_images, train_labels, "train"), (test_images, test_labels, "t10k")):
            if len(images) != len(labels):
                raise self._corrupt(f"{part}-*", f"{len(images)} images, but {len(labels)} labels")
        return Dataset(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64))

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise self._corrupt(name, error.strerror or "it cannot be read") from error

    def _array(self, name: str) -> NDArray[np.uint8]:
        try:
            content = gzip.decompress(self._bytes(name))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self._corrupt(name, str(error)) from error
        tail = (28, 28) if "images" in name else ()
        header = 8 + 4 * len(tail)
        magic = 0x800 + 1 + len(tail)  # unsigned bytes, and the number of dimensions
        sizes = np.frombuffer(content[:header], dtype=">u4") if len(content) >= header else np.zeros(1)
        if sizes[0] != magic:
            raise self._corrupt(name, "it has no IDX header of the expected kind")
        shape = tuple(int(size) for size in sizes[1:])
        if shape[1:] != tail:
            raise self._corrupt(name, f"its images are {shape[1:]}, not {tail}")
        if len(content) - header != np.prod(shape):
            raise self._corrupt(name, f"{len(content) - header} bytes of data, but the header says {np.prod(shape)}")
        array = np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
        if not tail and array.max(initial=0) > 9:
            raise self._corrupt(name, f"it has the label {array.max()}, the highest is 9")
        return array

    def _corrupt(self, name: str, what: str) -> ExperimentError:
        return ExperimentError(
            f"{self.folder / name}: the data set cannot be used: {what}",
            f"remove {self.folder} and run again, it is fetched anew; if a package put it there, reinstall the package",
        )


def debian_fashion_mnist(cache_dir: Path) -> IdxFolder:
    """Return Fashion-MNIST from Debian's package `dataset-fashion-mnist`.

    The installed package is used, else the package is fetched with apt (root is not needed) and unpacked into
    `cache_dir`/data/fashion-mnist.
    """
    package, inside = "dataset-fashion-mnist", Path("usr/share/datasets/fashion-mnist")
    cached = IdxFolder(cache_dir.resolve() / "data/fashion-mnist")
    for source in (cached, IdxFolder(Path("/") / inside)):
        if source.complete():
            return source
    by_hand = f"or copy the four *-ubyte.gz files of Fashion-MNIST into {cached.folder}"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ExperimentError(
            f"the data set comes from the Debian package {package}, but there is no apt-get here",
            f"use a controller with Debian or Ubuntu, {by_hand}",
        )
    cached.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.folder.parent, prefix=".") as temporary:
        root = Path(temporary)
        try:
            _apt_download(package, root)
            _run(["dpkg-deb", "-x", str(next(root.glob("*.deb"))), "."], root)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", "").strip().splitlines() or [str(error)]
            raise ExperimentError(
                f"the Debian package {package} cannot be fetched: {said[-1]}",
                f"check the network and apt's sources, install {package}, {by_hand}",
            ) from error
        shutil.rmtree(cached.folder, ignore_errors=True)
        (root / inside).rename(cached.folder)
    return cached


def _apt_download(package: str, folder: Path) -> None:
    """Fetch a package's archive into `folder`: with the system's package lists, or with fresh ones of our own."""
    download = ["apt-get", "download", package]
    try:
        _run(download, folder)
    except subprocess.CalledProcessError:
        for own_folder in ("lists/partial", "archives/partial"):
            (folder / own_folder).mkdir(parents=True)
        own = [f"-oDir::State::lists={folder / 'lists'}", f"-oDir::Cache={folder}"]
        _run(["apt-get", *own, "update"], folder)
        _run([*download, *own], folder)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, env={**os.environ, "LC_ALL": "C"}, check=True, capture_output=True, text=True, timeout=600
    )


SOURCES: dict[tuple[str, str], Callable[[Path], DataSource]] = {("fashion-mnist", "debian"): debian_fashion_mnist}
