"""Data that lie on a device and do not leave it: read where a client trains, and told of in numbers alone.

The client's container has the path that the inventory names, read-only. `python -m fltestbed.device_data NAME` says
what is there.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fltestbed.errors import ExperimentError
from fltestbed.formats import Dataset, Files


@dataclass(frozen=True)
class _Asked:
    """What the readers are told."""

    name: str
    source: str = "device"
    tokens: str = "characters"
    sequence_length: int = 80
    vocabulary: int = 10_000


def report(name: str) -> dict[str, Any]:
    """Return what a run's lock says of the data: hash, numbers of examples, of all and of each label, and their shape.

    Raises ExperimentError when they cannot be used as the data set `name`.
    """
    files = _files(name)
    found = files.load()
    return {
        "sha256": files.fingerprint(),
        "examples": len(found.train_labels),
        "held_out": len(found.test_labels),
        "labels": np.bincount(found.train_labels, minlength=found.classes).tolist(),
        "shape": list(found.train_inputs.shape[1:]),
    }


def load(name: str, sha256: str, classes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a shard: the data's train part to train on, its test part held out.

    `classes` are those of all devices together. Raises ExperimentError when the files are not those of this hash.
    """
    files = _files(name)
    if files.fingerprint() != sha256:
        raise ExperimentError(f"{files.path}: is not what it was when the run began", "leave the data alone in a run")
    found: Dataset = files.load()
    return {
        "classes": np.array(classes),
        "train_inputs": found.train_inputs,
        "train_labels": found.train_labels,
        "held_out_inputs": found.test_inputs,
        "held_out_labels": found.test_labels,
    }


def _files(name: str) -> Files:
    path = os.environ.get("FLTESTBED_DEVICE_DATA")
    if path is None:
        raise ExperimentError("the client's container has no data of the device", "run fltestbed up")
    return Files(Path(path), _Asked(name))


if __name__ == "__main__":
    try:
        print(json.dumps(report(sys.argv[1])))
    except ExperimentError as error:
        sys.exit(str(error))
