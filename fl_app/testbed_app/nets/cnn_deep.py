"""Six convolutions in three pairs, two dense layers: 550,000 parameters on images of 32 by 32."""

from torch import nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 8


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    channels, height, width = shape
    groups = part(8, share)
    layers: list[nn.Module] = []
    for size in (4 * groups, 8 * groups, 16 * groups):
        for into in (channels, size):
            layers += [nn.Conv2d(into, size, kernel_size=3, padding=1), nn.GroupNorm(groups, size), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = size
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * (height // 8) * (width // 8), 16 * groups),
        nn.ReLU(),
        nn.Linear(16 * groups, classes),
    )
