"""The CNN of Flower's PyTorch quickstart: 62,000 parameters on images of 32 by 32."""

from torch import nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 16


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    channels, *sides = shape
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    first, second, third, fourth = (part(size, share) for size in (6, 16, 120, 84))
    return nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * height * width, third),
        nn.ReLU(),
        nn.Linear(third, fourth),
        nn.ReLU(),
        nn.Linear(fourth, classes),
    )
