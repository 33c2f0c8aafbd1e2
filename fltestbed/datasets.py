"""The sources of data sets: each brings the files to the controller, where `formats` reads them."""

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fltestbed.errors import ExperimentError
from fltestbed.experiment import Data
from fltestbed.formats import Files
from fltestbed.paths import expanded

_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_REPOSITORIES = {  # on the hub: the repository, and its columns of inputs and labels
    "cifar-10": ("uoft-cs/cifar10", "img", "label"),
    "cifar-100": ("uoft-cs/cifar100", "img", "fine_label"),
    "fashion-mnist": ("zalando-datasets/fashion_mnist", "image", "label"),
    "mnist": ("ylecun/mnist", "image", "label"),
}


def source(data: Data, *, cache_dir: Path, beside: Path) -> Files:
    """Return the files of the data set that an experiment names and `require` has passed.

    `cache_dir` keeps what is fetched, `beside` is the folder of the experiment's file.

    Raises ExperimentError when they cannot be had.
    """
    if data.source == "debian":
        return Files(debian_fashion_mnist(cache_dir), data)
    if data.source == "hub":
        return Files(_hub(data.name, cache_dir), data)
    return Files(_path(data, beside), data)


def require(data: Data, *, cache_dir: Path, beside: Path) -> None:
    """Raise ExperimentError where it is plain that `source` would. Nothing is fetched or read."""
    if data.source == "folder":
        _path(data, beside)
    elif data.source == "hub" and not _hub_file(data.name, cache_dir).is_file() and not find_spec("flwr_datasets"):
        raise ExperimentError(
            "the source hub needs the Python package flwr-datasets, with its extra vision, and it is not here",
            "install it beside fltestbed: pip install 'fltestbed[hub]'; or bring the files, and set data.source=folder",
        )


def _path(data: Data, beside: Path) -> Path:
    path = (beside / expanded(str(data.path))).resolve()
    if not path.exists():
        raise ExperimentError(f"data.path: there is no {path}", "write the path relative to the experiment file")
    return path


def debian_fashion_mnist(cache_dir: Path) -> Path:
    """Return the folder of Fashion-MNIST from Debian's package `dataset-fashion-mnist`.

    The installed package is used, else the package is fetched with apt (root is not needed) and unpacked into
    `cache_dir`/data/fashion-mnist.
    """
    package, inside = "dataset-fashion-mnist", Path("usr/share/datasets/fashion-mnist")
    cached = cache_dir.resolve() / "data/fashion-mnist"
    for folder in (cached, Path("/") / inside):
        if all((folder / f"{name}-ubyte.gz").is_file() for name in _IDX):
            return folder
    by_hand = f"or copy the four *-ubyte.gz files of Fashion-MNIST into {cached}"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ExperimentError(
            f"the data set comes from the Debian package {package}, but there is no apt-get here",
            f"use a controller with Debian or Ubuntu, {by_hand}",
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".") as temporary:
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
        shutil.rmtree(cached, ignore_errors=True)
        (root / inside).rename(cached)
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


def _hub_file(name: str, cache_dir: Path) -> Path:
    return cache_dir / "data/hub" / f"{name}.npz"


def _hub(name: str, cache_dir: Path) -> Path:
    """Return an .npz file with a data set of the Hugging Face hub, which is fetched with Flower Datasets, once."""
    file = _hub_file(name, cache_dir)
    if file.is_file():
        return file
    from flwr_datasets import FederatedDataset

    repository, inputs, labels = _REPOSITORIES[name]
    arrays = {}
    try:
        whole = FederatedDataset(dataset=repository, partitioners={})
        for part in ("train", "test"):
            rows = whole.load_split(part)
            arrays[f"x_{part}"] = np.stack([np.asarray(image) for image in rows[inputs]])
            arrays[f"y_{part}"] = np.asarray(rows[labels])
    except Exception as error:  # whatever the hub's client raises: there is no root of its errors
        raise ExperimentError(
            f"{repository} cannot be fetched from the hub: {error}",
            "check the network, or bring the files by hand and write source: folder",
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new.npz")
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(file)
    return file
