"""The CNN of Flower's PyTorch quickstart: 62,000 parameters on images of 32 by 32."""

from torch import nn

DIMENSIONS, LEAST = 3, 16


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the model for images of this shape."""
    channels, *sides = shape
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )
