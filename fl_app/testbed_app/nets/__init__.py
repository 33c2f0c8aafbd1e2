"""The models, one a file: `resnet-18` is `resnet_18.py`. A run imports its own alone.

Each has `DIMENSIONS`, of an example that it takes (3: an image of shape (channels, height, width); 1: tokens of shape
(length,)), `LEAST`, the smallest height, width or length, and `build(shape, classes, share)`. Its hidden layers have
the `share`, above 0, at most 1, of their channels: the first ones, so that a narrow model lies within the whole.

None has batch normalization: its running averages go wrong where clients have different labels, and server optimizers
make them negative. Where a paper has it, group normalization takes its place, as in Hsieh et al., The Non-IID Data
Quagmire of Decentralized Machine Learning, ICML 2020, and Reddi et al., Adaptive Federated Optimization, ICLR 2021. A
narrow model has a share of the groups: each has the channels in it that it has in the whole.
"""

import math


def part(number: int, share: float) -> int:
    """Return how many of a number of channels, or of their groups, a model with this share has: one at least."""
    return max(1, math.ceil(number * share - 1e-9))
