"""Reads the files that the deployer brought, by their hash."""

import hashlib
import io
import os
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
    of shape (n, length); labels are int64 of shape (n,), from 0 to `classes` - 1.
    Raises AppError when the file is missing or is another one.
    """
    path = Path(os.environ.get("FLTESTBED_DATA", "/data")) / f"{sha256}.npz"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}; bring the partitions again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise AppError(f"{path} is not the file of this run: its hash is {found}; bring the partitions again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def load_own(name: str, sha256: str, classes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of the data that lie on this device. Raises AppError when they are not those of this hash."""
    try:
        return device_data.load(name, sha256, classes)
    except ExperimentError as error:
        raise AppError(str(error)) from error
