"""The learning rate's schedules, worked out by hand; and that the schema knows each of them."""

import sys
from pathlib import Path
from typing import Any, get_args

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import schedules
from testbed_app.errors import AppError

from fltestbed import experiment

KINDS = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(experiment.Schedule)[0])}


def shares(name: str, rounds: int, **arguments: float) -> list[float]:
    """Return the shares of all rounds, with the schema's defaults."""
    wanted = KINDS[name](name=name, **arguments).model_dump()
    return [schedules.share(wanted, number, rounds) for number in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("constant", {}, [1, 1, 1, 1]),
        ("step", {"every": 2, "factor": 0.5}, [1, 1, 0.5, 0.5]),
        ("step", {"every": 1, "factor": 0.1}, [1, 0.1, 0.01, 0.001]),
        ("exponential", {"factor": 0.5}, [1, 0.5, 0.25, 0.125]),
        ("cosine", {}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        ("cosine", {"least": 0.2}, [1, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5)]),
    ],
)
def test_a_schedule_by_hand(name: str, arguments: dict[str, Any], expected: list[float]) -> None:
    assert shares(name, 4, **arguments) == pytest.approx(expected)


@pytest.mark.parametrize("name", KINDS)
def test_every_schedule_begins_with_all_of_it_and_never_rises(name: str) -> None:
    found = shares(name, 50)
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0


def test_an_unknown_schedule() -> None:
    with pytest.raises(AppError, match="there is no schedule 'linear'; the app has constant, cosine, "):
        schedules.share({"name": "linear"}, 1, 5)
