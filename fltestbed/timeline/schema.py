"""The key `timeline` of an experiment file."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fltestbed.conditions import KINDS, Action
from fltestbed.conditions import action as action_of
from fltestbed.errors import ConditionError
from fltestbed.fields import Fraction, Part, PositiveInt, PositiveSeconds, Seconds, Share, Span, problem

CUTS = ("pause", "kill", "partition")
"""What takes a device out of the training until it rejoins."""
LASTING = ("throttle", "shape", *CUTS)
"""What can be put back after a while."""


def _names(given: Any) -> Any:
    """Return one name or several as a list."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise problem(f"cannot be {given!r}", "name devices, clients or groups, as in [pi-3, pi-4] or supernodes")
    return names


def _parameters(given: Any) -> Any:
    if given is not None and not isinstance(given, dict):
        raise problem(f"cannot be {given!r}", "write the parameters, as in {cpus: 0.5}, or {} where there are none")
    return given


Names = Annotated[list[str], BeforeValidator(_names)]
Parameters = Annotated[dict[str, Any], BeforeValidator(_parameters)]


class Event(Part):
    """Something that is done to devices, once or again and again. Its moment is `at`, `round` or `accuracy`."""

    at: Seconds | None = None
    round: PositiveInt | None = None
    accuracy: Fraction | None = None
    every: Span | None = None
    times: PositiveInt | None = None
    devices: Names
    share: Fraction | None = None
    throttle: Parameters | None = None
    shape: Parameters | None = None
    pause: Parameters | None = None
    kill: Parameters | None = None
    partition: Parameters | None = None
    reboot: Parameters | None = None
    rejoin: Parameters | None = None
    restore: Parameters | None = None
    for_: Annotated[Span | None, Field(alias="for")] = None

    @property
    def action(self) -> Action:
        """What is done."""
        kind = next(kind for kind in KINDS if getattr(self, kind) is not None)
        return action_of(kind, getattr(self, kind))

    @field_validator(*KINDS)
    @classmethod
    def _parameters_are_the_actions(cls, given: Parameters | None, info: ValidationInfo) -> Parameters | None:
        try:
            if given is not None:
                action_of(str(info.field_name), given)
        except ConditionError as error:
            raise problem(error.message, error.hint) from None
        return given

    @model_validator(mode="after")
    def _one_moment_and_one_action(self) -> Self:
        moments = [name for name in ("at", "round", "accuracy") if getattr(self, name) is not None]
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        for what, had, example in (
            ("moment", moments, "at: 30s, round: 2 or accuracy: 0.6"),
            ("action", kinds, "throttle: {cpus: 0.5} or kill: {}"),
        ):
            if len(had) != 1:
                raise problem(
                    f"has {f'two {what}s: ' + ' and '.join(had) if had else f'no {what}'}", f"write {example}"
                )
        if self.for_ is not None and kinds[0] not in LASTING:
            raise problem(f"{kinds[0]} is over at once, so there is nothing to put back", "take `for` out")
        if self.every is None and self.times is not None:
            raise problem("times without every", "write after how long, as in every: 2m")
        if self.every is not None:
            by_rounds = isinstance(self.every, str)
            if self.accuracy is not None:
                raise problem("an accuracy is reached once, so every makes no sense", "take every and times out")
            if by_rounds != (self.round is not None):
                fits = "rounds, as in 2 rounds" if self.round is not None else "a time, as in 2m"
                raise problem(f"every cannot be {self.every!r} after {moments[0]}", f"write {fits}")
            if self.times is None and not by_rounds:
                raise problem("every without times", "write how often in all, as in times: 3")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"for" if key == "for_" else key: value for key, value in standard(self).items() if value is not None}


class _Churn(Part):
    action: Literal["pause", "kill", "partition"] = "partition"


class Markov(_Churn):
    """Each device is online and offline by turns, for times drawn from exponential distributions with these means.

    All begin online. This is the two-state availability process of Gilbert, "Capacity of a burst-noise channel", 1960.
    """

    model: Literal["markov"]
    devices: Names
    up: PositiveSeconds
    down: PositiveSeconds
    until: PositiveSeconds = 3600


class Diurnal(_Churn):
    """Each device is online for one part of each period; the run begins in the middle of that part.

    By how much a device is early or late is drawn once, from -spread/2 to spread/2 of a period.
    """

    model: Literal["diurnal"]
    devices: Names
    period: PositiveSeconds
    online: Annotated[float, Field(gt=0, lt=1, strict=False)]
    spread: Share = 0.2
    until: PositiveSeconds = 3600


class Trace(_Churn):
    """When each device goes offline and comes back, from a CSV file with the columns device, second, state.

    The file lies beside the experiment file. With `devices` each of those gets the rows of a device of the file, drawn
    without replacement; else the file's names are the testbed's.
    """

    model: Literal["trace"]
    file: str
    devices: Names | None = None


Churn = Annotated[Markov | Diurnal | Trace, Field(discriminator="model")]


class Timeline(Part):
    """What changes while the run trains. Without `seed` the experiment's is taken."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    events: list[Event] = Field(default=[])
    churn: list[Churn] = Field(default=[])

    @model_validator(mode="after")
    def _something_happens(self) -> Self:
        if not self.events and not self.churn:
            raise problem("has neither events nor churn", "write one, or timeline: null")
        return self
