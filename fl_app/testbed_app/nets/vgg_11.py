"""VGG-11, 9.2 million parameters, with one dense layer, as is usual on images of 32 by 32.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, column A.
"""

from torch import nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 32

_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    channels, groups = shape[0], part(32, share)
    layers: list[nn.Module] = []
    for block in _BLOCKS:
        for out in (size // 32 * groups for size in block):
            layers += [
                nn.Conv2d(channels, out, kernel_size=3, padding=1),
                nn.GroupNorm(groups, out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
