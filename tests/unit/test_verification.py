"""What is made of what was measured: as asked, not as asked, or less because of others."""

from typing import Any

import pytest

from fltestbed.verification import (
    BUSY,
    FREE,
    OFF,
    OK,
    judge,
    judge_cpu,
    judge_delay,
    judge_loss,
    judge_memory,
    judge_rate,
    on_the_wire,
)

MIB = 2**20


def cpu(**found: Any) -> dict[str, Any]:
    quiet = {"quota": 0.5, "cores": 4, "turns": 1e7, "got": 0.5, "periods": 50, "throttled": 50, "throttled_above": 0.0}
    return quiet | found


@pytest.mark.parametrize(
    ("asked", "found", "verdict", "says"),
    [
        (0.5, cpu(got=0.503), OK, ""),
        (0.5, cpu(got=0.486), OK, ""),
        (0.5, cpu(got=0.52), OFF, "does not hold it"),
        (0.5, cpu(quota=0.8, got=0.8), OFF, "the kernel has 0.8 cores, and 0.5 cores is asked for"),
        (0.5, cpu(quota=None, got=3.9), OFF, "the kernel has no limit"),
        (None, cpu(quota=0.5), OFF, "no limit is asked for"),
        (None, cpu(quota=None, got=3.9, periods=0, throttled=0), FREE, ""),
        (8.0, cpu(quota=8.0, got=3.9, throttled=0), OFF, "the device has 4"),
        (0.5, cpu(got=0.33, throttled=9), BUSY, "stopped it in 18% of the time"),
        (0.5, cpu(got=0.48, throttled=46), BUSY, "stopped it in 92% of the time"),
        (0.5, cpu(got=0.33, throttled=9, throttled_above=0.9), OFF, "virtual_device_cpus"),
        (0.5, cpu(got=0.33, throttled=50), OFF, "although it had not used its quota up"),
    ],
)
def test_cpu(asked: float | None, found: dict[str, Any], verdict: str, says: str) -> None:
    answer, reason = judge_cpu(asked, found)
    assert answer == verdict
    assert says in reason
    assert (not reason) == (verdict in (OK, FREE))


def memory(**found: Any) -> dict[str, Any]:
    return {"limit": 640 * MIB, "room": 4096 * MIB, "taken": 638 * MIB, "killed": True} | found


@pytest.mark.parametrize(
    ("asked", "found", "survived", "verdict", "says"),
    [
        (640 * MIB, memory(), True, OK, ""),
        (640 * MIB, memory(limit=512 * MIB), True, OFF, "the kernel has 512m, and 640m is asked for"),
        (640 * MIB, memory(limit=None), True, OFF, "the kernel has no limit"),
        (None, memory(limit=None, taken=None), True, FREE, ""),
        (640 * MIB, memory(room=500 * MIB, taken=None), True, OFF, "the device has 500m left"),
        (640 * MIB, memory(taken=672 * MIB, killed=False), True, OFF, "was not stopped"),
        (640 * MIB, memory(taken=500 * MIB), True, OFF, "stopped at 500m"),
        (640 * MIB, memory(), False, OFF, "the whole container"),
    ],
)
def test_memory(asked: int | None, found: dict[str, Any], survived: bool, verdict: str, says: str) -> None:
    answer, reason = judge_memory(asked, found, survived=survived)
    assert answer == verdict
    assert says in reason


@pytest.mark.parametrize(
    ("asked", "kernel", "rate", "verdict", "says"),
    [
        (5e6, 5e6, 4.95e6, OK, ""),
        (5e6, None, 900e6, OFF, "the kernel has no limit, and 5 Mbit/s is asked for"),
        (5e6, 5e6, 6e6, OFF, "past the limit"),
        (5e6, 5e6, 3e6, BUSY, "3 Mbit/s came through of 5"),
        (None, None, 900e6, FREE, ""),
        (None, 5e6, 5e6, OFF, "no limit is asked for"),
        (5e6, 5e6, None, OFF, "timed out"),
    ],
)
def test_rate(asked: float | None, kernel: float | None, rate: float | None, verdict: str, says: str) -> None:
    answer, reason = judge_rate(asked, kernel, rate, "timed out")
    assert answer == verdict
    assert says in reason


@pytest.mark.parametrize(
    ("asked", "kernel", "trip", "verdict"),
    [
        (0.08, 0.08, 0.0805, OK),
        (0.08, 0.08, 0.09, OK),  # the way itself
        (0.08, 0.08, 0.12, BUSY),
        (0.08, 0.08, 0.04, OFF),
        (0.08, 0.04, 0.04, OFF),  # one way's delay is gone
        (None, None, 0.0004, FREE),
        (None, None, None, OFF),
    ],
)
def test_delay(asked: float | None, kernel: float | None, trip: float | None, verdict: str) -> None:
    assert judge_delay(asked, kernel, trip)[0] == verdict


@pytest.mark.parametrize(
    ("asked", "kernel", "lost", "verdict"),
    [(0.02, 0.02, 0, OK), (0.02, 0.02, 5, OK), (0.02, 0.02, 12, OFF), (0.2, 0.2, 2, OFF), (0.02, None, 2, OFF)],
)
def test_loss_is_judged_by_chance(asked: float, kernel: float | None, lost: int, verdict: str) -> None:
    assert judge_loss(asked, kernel, lost, 100)[0] == verdict


def test_a_shaper_counts_the_headers_too() -> None:
    """At 5 Mbit/s full frames of 1514 bytes carry 1448 bytes each."""
    payload = 5e6 / 8 * 1448 / 1514
    assert on_the_wire(payload, 1448) == pytest.approx(5e6, rel=1e-6)
    assert on_the_wire(None, 1448) is None


CLIENTS = [
    {"device": "pi", "client": "pi", "cpus": 0.5, "memory": 640 * MIB, "settings": {}},
    {"device": "pc", "client": "pc-1", "cpus": None, "memory": None, "settings": {}},
    {"device": "pc", "client": "pc-2", "cpus": None, "memory": None, "settings": {}},
    {"device": "off", "client": "off", "cpus": 1, "memory": None, "settings": {}},
]
NETWORK = {
    "round_trips": [0.001, 0.0012, None, 0.0011],
    "down": 1e6,
    "down_segment": 1448,
    "up": 1e6,
    "up_segment": 1448,
}


def test_every_figure_of_every_measured_client_is_a_row() -> None:
    free = cpu(quota=None, got=3.9, turns=2e7)
    no_limit = {"limit": None, "room": None, "taken": None, "killed": None}
    answers = {
        "pi": {
            "asked": {"rate_down": 9e6},
            "shaped": {},
            "clients": [
                {
                    "client": "pi",
                    "state": "running",
                    "cpu": cpu(),
                    "memory": memory(),
                    "network": NETWORK,
                    "survived": True,
                }
            ],
        },
        "pc": {
            "asked": {},
            "shaped": {},
            "clients": [
                {
                    "client": "pc-1",
                    "state": "running",
                    "cpu": free,
                    "memory": no_limit,
                    "network": {"error": "timed out"},
                    "survived": True,
                },
                {"client": "pc-2", "state": "exited"},
            ],
        },
    }
    rows = judge(CLIENTS, answers)
    by = {(row["client"], row["figure"]): row for row in rows}
    figures = ("cpus", "memory", "core speed")
    assert list(by) == [
        *(("pi", figure) for figure in (*figures, "down", "up", "round trip", "lost")),
        *(("pc-1", figure) for figure in (*figures, "network")),
        ("pc-2", "container"),
    ]
    assert by["pi", "cpus"]["verdict"] == by["pi", "memory"]["verdict"] == OK
    assert (by["pi", "memory"]["asked"], by["pi", "memory"]["measured"]) == (640, 638)
    assert by["pi", "memory"]["error"] == pytest.approx(-2 / 640)
    assert [by[name, "core speed"]["measured"] for name in ("pi", "pc-1")] == [0.5, 1.0]
    assert by["pi", "down"]["verdict"] == OFF and by["pi", "up"]["verdict"] == FREE
    assert by["pi", "round trip"]["measured"] == pytest.approx(1.1)
    assert by["pi", "lost"]["measured"] == 25
    assert by["pc-1", "network"]["verdict"] == by["pc-2", "container"]["verdict"] == OFF
