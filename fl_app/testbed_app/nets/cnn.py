"""A CNN of 106,000 parameters on images of 28 by 28: strides instead of pools, made for small devices."""

from torch import nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 4


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    channels, height, width = shape
    first, second, dense = (part(size, share) for size in (16, 32, 64))
    return nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * -(-height // 4) * -(-width // 4), dense),
        nn.ReLU(),
        nn.Linear(dense, classes),
    )
