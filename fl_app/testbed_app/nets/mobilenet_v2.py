"""MobileNetV2, 2.2 million parameters, with strides for images of 32 by 32.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, table 2.
"""

from torch import Tensor, nn

from testbed_app.nets import part

DIMENSIONS, LEAST = 3, 8

# Expansion, channels, repetitions, stride of the first. The paper's, for images of 224 by 224, halves twice more.
_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class _Block(nn.Module):
    """An inverted residual: wider, by channel, narrower."""

    def __init__(self, into: int, out: int, expansion: int, stride: int, groups: int) -> None:
        super().__init__()
        wide = into * expansion
        self._around = stride == 1 and into == out
        self._through = nn.Sequential(
            *(_convolution(into, wide, 1, groups) if expansion > 1 else ()),
            *_convolution(wide, wide, 3, groups, stride=stride, apart=wide),
            nn.Conv2d(wide, out, kernel_size=1, bias=False),
            nn.GroupNorm(groups, out),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._through(inputs)
        return inputs + outputs if self._around else outputs


def _convolution(
    into: int, out: int, size: int, groups: int, *, stride: int = 1, apart: int = 1
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(into, out, size, stride=stride, padding=size // 2, groups=apart, bias=False),
        nn.GroupNorm(groups, out),
        nn.ReLU6(inplace=True),
    )


def build(shape: tuple[int, ...], classes: int, share: float) -> nn.Module:
    """Return the model for images of this shape."""
    groups = part(8, share)
    channels, last = 4 * groups, 160 * groups
    layers: list[nn.Module] = [*_convolution(shape[0], channels, 3, groups)]
    for expansion, size, repetitions, stride in _BLOCKS:
        out = size // 8 * groups
        for number in range(repetitions):
            layers.append(_Block(channels, out, expansion, stride if number == 0 else 1, groups))
            channels = out
    return nn.Sequential(
        *layers,
        *_convolution(channels, last, 1, groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, classes),
    )
