"""Dense layers of 128 and 256: 136,000 parameters on images of 28 by 28."""

import math

from torch import nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 1


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    first, second = part(128, share), part(256, share)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, classes),
    )
