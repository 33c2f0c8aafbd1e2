"""Reads the files that the deployer brought, by their hash."""

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fltestbed import device_data
from fltestbed.errors import ExperimentError
from testbed_app.errors import AppError


def load(sha256: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file with this hash: a client's shard or the server's test set.

    The folder is $FLTESTBED_DATA, or /data. Inputs are images, uint8 of shape (n, channels, height, width), or tokens
    of shape (n, length); labels are int64 of shape (n,), from 0 to `classes` - 1. The arrays are mapped: what takes
    memory of the process is what is indexed, which is a copy.
    Raises AppError when the file is missing or is another one.
    """
    path = Path(os.environ.get("FLTESTBED_DATA", "/data")) / f"{sha256}.npz"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}; bring the partitions again") from error
    if found != sha256:
        raise AppError(f"{path} is not the file of this run: its hash is {found}; bring the partitions again")
    return dict(_mapped(path))


def _mapped(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of an .npz file that is not compressed, by their names; NumPy itself only maps .npy files."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            file.seek(member.header_offset + 26)  # where a local header has the lengths of the name and of the rest
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            yield member.filename.removesuffix(".npy"), np.memmap(path, kind, "c", offset=file.tell(), shape=shape)


def load_own(name: str, sha256: str, classes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of the data that lie on this device. Raises AppError when they are not those of this hash."""
    try:
        return device_data.load(name, sha256, classes)
    except ExperimentError as error:
        raise AppError(str(error)) from error
