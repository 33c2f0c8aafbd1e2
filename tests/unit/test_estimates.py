"""Mean, spread and interval of a few figures, against figures worked out elsewhere."""

from math import gamma, pi, sqrt

import pytest

from fltestbed import estimates


def test_a_textbooks_figures() -> None:
    """Ten figures of mean 5 and standard deviation 2: 2.262 x 2 / sqrt(10) is 1.4306."""
    found = estimates.estimate([3, 7, 3, 7, 3, 7, 5, 5, 5 - sqrt(6), 5 + sqrt(6)])
    assert found == pytest.approx((5, 2, 5 - 1.4306, 5 + 1.4306), abs=1e-4)


def test_two_figures_say_little_and_one_nothing() -> None:
    assert estimates.estimate([0.8, 0.9]) == pytest.approx((0.85, 0.070711, 0.85 - 0.6353, 0.85 + 0.6353), abs=1e-5)
    assert estimates.estimate([0.8]) == (0.8, None, None, None)
    assert estimates.estimate([]) == (None, None, None, None)


def test_the_table_is_that_of_students_distribution() -> None:
    """From -t to t lies 0.95 of the density."""
    assert len(estimates._T) == 30
    for freedom, t in enumerate(estimates._T, start=1):
        scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
        steps = 2000
        width = 2 * t / steps
        weights = [1, *([4, 2] * (steps // 2))[: steps - 1], 1]  # Simpson's rule
        density = [(1 + (-t + place * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for place in range(steps + 1)]
        inside = scale * width / 3 * sum(weight * each for weight, each in zip(weights, density, strict=True))
        assert inside == pytest.approx(0.95, abs=5e-5), freedom


def test_many_figures_have_an_interval_that_is_a_little_too_wide() -> None:
    figures = [0.0, 1.0] * 50
    found = estimates.estimate(figures)
    assert found.mean == 0.5 and found.sd is not None and found.high is not None
    assert found.high - 0.5 == pytest.approx(2.042 * found.sd / 10)
