"""Six convolutions in three pairs, two dense layers: 550,000 parameters on images of 32 by 32."""

from torch import nn

DIMENSIONS, LEAST = 3, 8


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the model for images of this shape."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for size in (32, 64, 128):
        for into in (channels, size):
            layers += [nn.Conv2d(into, size, kernel_size=3, padding=1), nn.GroupNorm(8, size), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = size
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(128 * (height // 8) * (width // 8), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
