"""What the parts of an experiment's schema are made of."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from fltestbed.inventory import memory_bytes

# Numbers are read leniently, as YAML takes 1e-3 for a string.
PositiveNumber = Annotated[float, Field(gt=0, strict=False)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=False)]
NotNegative = Annotated[float, Field(ge=0, strict=False)]
Share = Annotated[float, Field(ge=0, lt=1, strict=False)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]

PROBLEM = "fltestbed"
"""The kind of an error that has a text and a hint of its own."""

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Part(BaseModel):
    """A mapping of the file that has these keys and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def problem(what: str, hint: str) -> PydanticCustomError:
    """Return an error to raise in a validator: what is wrong, and what to do."""
    return PydanticCustomError(PROBLEM, "{what}", {"what": what, "hint": hint})


def _memory(value: object) -> int:
    number = memory_bytes(value)
    if number is None:
        raise problem(f"cannot be {value!r}", "write a size with k, m or g, as in 512m or 2g")
    return number


def _seconds(value: Any) -> float:
    """Return a time as seconds: a number of them, or a text with a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value))
    if isinstance(value, bool) or not match or match[2] not in _UNITS:
        raise problem(f"cannot be {value!r}", "write a time, as in 30s, 2m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def _span(value: Any) -> float | str:
    """Return a time as seconds, or a number of rounds as a text in one form, as in `2 rounds`."""
    if match := re.fullmatch(r"([1-9]\d*) *rounds?", str(value)):
        return f"{match[1]} round{'s' * (match[1] != '1')}"
    try:
        seconds = _seconds(value)
    except PydanticCustomError:
        raise problem(f"cannot be {value!r}", "write a time or rounds, as in 30s, 2m or 1 round") from None
    if not seconds:
        raise problem("cannot be 0", "write a time or rounds, as in 30s, 2m or 1 round")
    return seconds


Seconds = Annotated[float, BeforeValidator(_seconds)]
PositiveSeconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Span = Annotated[float | str, BeforeValidator(_span)]
Memory = Annotated[int, BeforeValidator(_memory), Field(gt=0)]
