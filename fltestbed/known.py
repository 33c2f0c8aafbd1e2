"""The data sets that are known by their names, before they are read."""

from typing import NamedTuple


class Known(NamedTuple):
    """What is known of a data set by its name, before it is read."""

    examples: int  # to train on
    shape: tuple[int, int, int]  # of an image: channels, height, width
    classes: int


KNOWN = {
    "cifar-10": Known(50_000, (3, 32, 32), 10),
    "cifar-100": Known(50_000, (3, 32, 32), 100),
    "fashion-mnist": Known(60_000, (1, 28, 28), 10),
    "mnist": Known(60_000, (1, 28, 28), 10),
}
"""The data sets that any source has to have as everybody else has them."""
