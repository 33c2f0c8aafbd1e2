"""What several figures of one quantity say of it: their mean, their spread, and where the true mean lies."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

# Student's t of 0.975 by degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Estimate(NamedTuple):
    """Mean, standard deviation of the figures, and the ends of the 95 % t-interval of the mean; None if not known."""

    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(figures: Sequence[float]) -> Estimate:
    """Return what the figures say. One has no spread; above 31, the t of 31 makes the interval a little too wide."""
    if len(figures) < 2:
        return Estimate(*figures)
    middle, spread = mean(figures), stdev(figures)
    half = _T[min(len(figures) - 1, len(_T)) - 1] * spread / sqrt(len(figures))
    return Estimate(middle, spread, middle - half, middle + half)
