"""The quantities of a network's condition: rates, delay, jitter and loss, from text with units to numbers."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fltestbed.paths import nearest

KEYS = ("rate_up", "rate_down", "delay", "jitter", "loss")
"""Up is from the device to the server. Delay, jitter and loss hold in each direction."""

_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_UNITS = {"rate_up": _BITS, "rate_down": _BITS, "delay": _SECONDS, "jitter": _SECONDS, "loss": {"%": 0.01}}
_RATE = ("a rate from 8kbit to 100gbit, as in 500kbit or 5mbit", 8e3, 100e9)
_TIME = ("a time with us, ms or s, at most 60s, as in 80ms", 0, 60)
_SHARE = ("a share from 0% to 99%, as in 1% or 0.5%", 0, 0.99)
_RULES = {"rate_up": _RATE, "rate_down": _RATE, "delay": _TIME, "jitter": _TIME, "loss": _SHARE}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) ?([a-z%]+)")


class Wrong(NamedTuple):
    """What is wrong with the value of a key, and what to write instead."""

    key: str
    what: str
    fix: str


def parse(entry: Mapping[str, Any]) -> tuple[dict[str, float], list[Wrong]]:
    """Return a network's condition in bit/s, s and shares of 1, without what is wrong, which comes second."""
    numbers: dict[str, float] = {}
    wrong = []
    for key, value in entry.items():
        if key not in KEYS:
            wrong.append(Wrong(str(key), f"there is no {key!r} of a network", nearest(str(key), KEYS)))
        elif (number := _number(key, value)) is None:
            wrong.append(Wrong(key, f"{key} cannot be {value!r}", f"write {_RULES[key][0]}"))
        else:
            numbers[key] = number
    if not wrong and numbers.get("jitter", 0) > numbers.get("delay", 0):
        fix = "set a delay of at least the jitter: a packet can't come before it was sent"
        wrong.append(Wrong("jitter", "jitter is more than the delay", fix))
    return numbers, wrong


def _number(key: str, value: Any) -> float | None:
    match = _QUANTITY.fullmatch(str(value).lower())
    if not match or match[2] not in _UNITS[key]:
        return None
    number = float(match[1]) * _UNITS[key][match[2]]
    _, least, most = _RULES[key]
    return number if least <= number <= most else None
