"""Two convolutions, two dense layers, dropout, log-softmax: 1.2 million parameters on images of 28 by 28."""

from torch import nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 6


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    channels, height, width = shape
    first, second, dense = (part(size, share) for size in (32, 64, 128))
    return nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(second * ((height - 4) // 2) * ((width - 4) // 2), dense),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(dense, classes),
        nn.LogSoftmax(dim=1),
    )
