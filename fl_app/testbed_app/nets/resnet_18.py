"""ResNet-18, 11.2 million parameters, with the first layer for images of 32 by 32.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016; the first layer as in its section 4.2 on CIFAR-10.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

DIMENSIONS, LEAST = 3, 8


class _Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self._through = nn.Sequential(
            *_convolution(into, out, 3, stride), nn.ReLU(inplace=True), *_convolution(out, out, 3, 1)
        )
        self._around = nn.Sequential(*(_convolution(into, out, 1, stride) if stride > 1 or into != out else ()))

    def forward(self, inputs: Tensor) -> Tensor:
        return relu(self._through(inputs) + self._around(inputs))


def _convolution(into: int, out: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, size, stride=stride, padding=size // 2, bias=False), nn.GroupNorm(32, out)


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the model for images of this shape."""
    layers: list[nn.Module] = [*_convolution(shape[0], 64, 3, 1), nn.ReLU(inplace=True)]
    channels = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Block(channels, out, stride), _Block(out, out, 1)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
