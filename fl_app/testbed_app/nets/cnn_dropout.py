"""Two convolutions, two dense layers, dropout, log-softmax: 1.2 million parameters on images of 28 by 28."""

from torch import nn

DIMENSIONS, LEAST = 3, 6


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the model for images of this shape."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, classes),
        nn.LogSoftmax(dim=1),
    )
