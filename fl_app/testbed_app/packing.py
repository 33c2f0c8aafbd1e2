"""A model's arrays as one: Flower carries each array by requests of its own, and MobileNetV2 has 158."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

_NAME = "packed"


def pack(arrays: ArrayRecord, shapes: Mapping[str, Sequence[int]]) -> ArrayRecord:
    """Return the arrays that have these shapes, flat and one behind the other, as one of float32."""
    flat = np.concatenate([arrays[name].numpy().ravel() for name in shapes])
    return ArrayRecord({_NAME: Array(flat.astype(np.float32, copy=False))})


def unpack(packed: ArrayRecord, shapes: Mapping[str, Sequence[int]]) -> ArrayRecord:
    """Return the arrays of these shapes that `pack` made one of."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(packed[_NAME].numpy(), ends[:-1])
    return ArrayRecord(
        {name: Array(part.reshape(tuple(shape))) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    )
