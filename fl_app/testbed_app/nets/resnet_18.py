"""ResNet-18, 11.2 million parameters, with the first layer for images of 32 by 32.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016; the first layer as in its section 4.2 on CIFAR-10.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 8


class _Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, into: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        self._through = nn.Sequential(
            *_convolution(into, out, 3, stride, groups),
            nn.ReLU(inplace=True),
            *_convolution(out, out, 3, 1, groups),
        )
        self._around = nn.Sequential(*(_convolution(into, out, 1, stride, groups) if stride > 1 or into != out else ()))

    def forward(self, inputs: Tensor) -> Tensor:
        return relu(self._through(inputs) + self._around(inputs))


def _convolution(into: int, out: int, size: int, stride: int, groups: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, size, stride=stride, padding=size // 2, bias=False), nn.GroupNorm(groups, out)


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    groups = part(32, share)
    channels = 2 * groups
    layers: list[nn.Module] = [*_convolution(shape[0], channels, 3, 1, groups), nn.ReLU(inplace=True)]
    for out, stride in ((2 * groups, 1), (4 * groups, 2), (8 * groups, 2), (16 * groups, 2)):
        layers += [_Block(channels, out, stride, groups), _Block(out, out, 1, groups)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
