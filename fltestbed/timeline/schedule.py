"""A timeline for one testbed: every random choice drawn, every repetition written out, all checked before the run."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from fltestbed import experiment
from fltestbed.conditions import Action, Target, targets
from fltestbed.errors import ConditionError, ExperimentError
from fltestbed.inventory import Testbed
from fltestbed.paths import expanded
from fltestbed.plan import Plan
from fltestbed.timeline.schema import CUTS, Churn, Diurnal, Event, Markov, Timeline, Trace

Clock = Literal["seconds", "round", "accuracy"]
_CLOCKS: tuple[Clock, ...] = ("seconds", "round", "accuracy")
_MOST = 20_000
_ONLINE = {
    **dict.fromkeys(("1", "on", "up", "online"), True),
    **dict.fromkeys(("0", "off", "down", "offline"), False),
}
_COLUMNS = {"device", "second", "state"}


class When(NamedTuple):
    """The moment when `clock` reaches `value`, and a time (s) or rounds (`2 rounds`) after it.

    Seconds count from the start of the first round; a round is reached when it starts, an accuracy when the round ends
    after which the global model has it.
    """

    clock: Clock
    value: float
    later: float | str = 0.0

    def __str__(self) -> str:
        named = {"seconds": f"{self.value:g} s", "round": f"round {self.value:g}"}
        after = f"{self.later:g} s" if isinstance(self.later, float) else self.later
        return named.get(self.clock, f"accuracy {self.value:g}") + (f" + {after}" if self.later else "")


@dataclass(frozen=True)
class Step:
    """One action on one device, or on some of its clients.

    `of` is the key that it comes from, as in `timeline.events.0`; `ends` is the number of the step that it puts back.
    """

    number: int
    of: str
    when: When
    target: Target
    action: Action
    ends: int | None = None

    def row(self) -> dict[str, Any]:
        """Return the step as timeline.jsonl has it."""
        return {
            "step": self.number,
            "of": self.of,
            "clock": self.when.clock,
            "value": self.when.value,
            "later": self.when.later or None,
            "device": self.target.device,
            "clients": list(self.target.clients),
            "action": self.action.kind,
            "parameters": dict(self.action.parameters),
            "ends": self.ends,
        }


def families(kind: str) -> tuple[str, ...]:
    """Return what a kind of action changes: throttle, shape, cut (whether one takes part at all), or all of them."""
    if kind in ("throttle", "shape", "reboot"):
        return (kind,)
    if kind in ("unthrottle", "unshape"):
        return (kind.removeprefix("un"),)
    return ("cut",) if kind in (*CUTS, "rejoin") else ("throttle", "shape", "cut")


@dataclass(frozen=True)
class Place:
    """Where a timeline is written, and what it is for.

    `folder` is what the path of a trace is relative to. `where` turns a key into what to name in an error. `reports`
    says whether the app tells of its rounds.
    """

    folder: Path
    where: Callable[[str], str] = str
    rounds: int = 1
    seed: int = 0
    reports: bool = True


def of(plan: Plan, testbed: Testbed, file: Path | None, settings: Sequence[str]) -> list[Step]:
    """Return the steps of a plan's experiment, which is read from `file` with `settings`; none without a timeline.

    Raises ExperimentError.
    """
    wanted = plan.experiment
    if wanted is None or wanted.timeline is None or file is None:
        return []
    ours = experiment.split(settings)[0]
    place = Place(
        plan.folder, lambda key: experiment.where(file, ours, key), wanted.rounds, wanted.seed, plan.app.reports
    )
    return expand(wanted.timeline, testbed, place)


def expand(timeline: Timeline, testbed: Testbed, place: Place) -> list[Step]:
    """Return the steps of a timeline on a testbed, clock by clock; the same seed gives the same steps.

    Raises ExperimentError with all that cannot be.
    """
    return _Expansion(timeline, testbed, place).steps()


class _Expansion:
    def __init__(self, timeline: Timeline, testbed: Testbed, place: Place) -> None:
        self._timeline = timeline
        self._testbed = testbed
        self._place = place
        self._seed = place.seed if timeline.seed is None else timeline.seed
        self._problems: dict[str, str] = {}  # what is wrong: what to do
        self._contradictions: set[tuple[str, str]] = set()  # the keys of both; said once, however often they repeat
        self._steps: list[Step] = []
        self._timed: set[int] = set()  # the steps that are put back after a while

    def steps(self) -> list[Step]:
        for index, event in enumerate(self._timeline.events):
            self._event(f"timeline.events.{index}", event)
        for index, churn in enumerate(self._timeline.churn):
            self._churn(f"timeline.churn.{index}", churn)
        ordered = sorted(self._steps, key=_order)
        if not self._problems:
            for client in self._testbed.clients:
                self._check(client["client"], [step for step in ordered if _concerns(step.target, client)])
        if self._problems:
            hints = dict.fromkeys(self._problems.values())
            raise ExperimentError("\n".join(self._problems), "; ".join(hints))
        numbers = {step.number: number for number, step in enumerate(ordered, start=1)}
        return [
            replace(step, number=numbers[step.number], ends=None if step.ends is None else numbers[step.ends])
            for step in ordered
        ]

    def _refuse(self, of: str, what: str, hint: str) -> None:
        self._problems.setdefault(f"{self._place.where(of)}: {what}", hint)

    def _event(self, of: str, event: Event) -> None:
        if not self._place.reports and event.at is None:
            what = "the app reports no rounds, so nothing tells when this is due"
            return self._refuse(of, what, "write at, which counts from the start of such an app's run")
        for repetition, when in enumerate(self._moments(event)):
            if when.clock == "round" and when.value > self._place.rounds:
                what = f"round {when.value:g} is past the last one, which is {self._place.rounds}"
                return self._refuse(of, what, "raise rounds, or have it earlier or fewer times")
            seed = self._random(of, repetition).getrandbits(32)
            for target in self._targets(of, event.devices, event.action.kind, event.share, seed):
                self._add(of, when, target, event.action, event.for_)
        return None

    def _moments(self, event: Event) -> Iterator[When]:
        if event.accuracy is not None:
            yield When("accuracy", event.accuracy)
        elif event.round is not None:
            apart = _rounds(event.every or "1 round")
            times = event.times or (1 + (self._place.rounds - event.round) // apart if event.every else 1)
            yield from (When("round", event.round + number * apart) for number in range(max(1, times)))
        else:
            seconds = float(event.every or 0)
            yield from (When("seconds", (event.at or 0.0) + number * seconds) for number in range(event.times or 1))

    def _random(self, *what: object) -> Random:
        """Return a generator for one draw, so that another event does not change it."""
        return Random(" ".join(map(str, [self._seed, *what])))  # noqa: S311 no secret

    def _targets(
        self, of: str, names: Sequence[str], kind: str, share: float | None = None, seed: int = 0
    ) -> tuple[Target, ...]:
        try:
            return targets(self._testbed, names, kind, share=share or 1.0, seed=seed)
        except ConditionError as error:
            self._refuse(of, error.message, error.hint)
            return ()

    def _add(self, of: str, when: When, target: Target, action: Action, lasts: float | str | None) -> None:
        if len(self._steps) >= _MOST:
            return self._refuse(of, f"the timeline has more than {_MOST} steps", "have less of it")
        begin = Step(len(self._steps), of, when, target, action)
        self._steps.append(begin)
        if lasts is None:
            return None
        if when.clock == "seconds" and isinstance(lasts, float):
            end = When("seconds", when.value + lasts)
        elif when.clock == "round" and isinstance(lasts, str):
            end = When("round", when.value + _rounds(lasts))
        else:
            end = when._replace(later=lasts)
        if end.clock != "round" or end.value <= self._place.rounds:  # the end of the run puts everything back anyway
            self._steps.append(Step(len(self._steps), of, end, target, put_back(action), ends=begin.number))
            self._timed.add(begin.number)
        return None

    def _churn(self, of: str, churn: Churn) -> None:
        spells: Iterator[tuple[str, float, float]]
        if isinstance(churn, Trace):
            spells = self._traced(of, churn)
        else:
            names = self._targets(of, churn.devices, churn.action)
            draw = _markov if isinstance(churn, Markov) else _diurnal
            spells = (
                (target.device, begin, end)
                for target in names
                for begin, end in draw(churn, self._random(of, target.device))  # type: ignore[arg-type]
            )
        for device, begin, end in spells:
            lasts = None if end == math.inf else round(end - begin, 3)
            self._add(of, When("seconds", round(begin, 3)), Target(device), Action(churn.action), lasts)

    def _traced(self, of: str, churn: Trace) -> Iterator[tuple[str, float, float]]:
        """Yield when each device is offline by a trace: the device, from and to, in s; to infinity where it stays."""
        path = self._place.folder / expanded(churn.file)
        try:
            states = _read_trace(path)
        except ValueError as error:
            self._refuse(of, str(error), "a trace has the columns device, second, state; a state is online or offline")
            return
        if churn.devices is None:
            names = {name: name for name in states}
            self._targets(of, list(names), churn.action)
        else:
            devices = [target.device for target in self._targets(of, churn.devices, churn.action)]
            if len(devices) > len(states):
                what = f"{path} has {len(states)} devices, and {len(devices)} are to have one each"
                self._refuse(of, what, "name fewer devices")
                return
            drawn = self._random(of).sample(sorted(states), len(devices))
            names = dict(zip(devices, drawn, strict=True))
        if not self._problems:
            for device, name in names.items():
                yield from ((device, begin, end) for begin, end in _offline(states[name]))

    def _check(self, client: str, steps: Sequence[Step]) -> None:
        """Refuse what contradicts itself among the steps that concern a client, which are in order.

        What lies on different clocks has no order before the run.
        """
        for clock in _CLOCKS:
            own = [step for step in steps if step.when.clock == clock]
            others = [step for step in steps if step.when.clock != clock]
            open_: dict[str, Step] = {}
            last: dict[str, Step] = {}
            for step in own:
                for family in families(step.action.kind):
                    before = last.get(family)
                    if before and before.when == step.when and before.ends is None and step.ends is None:
                        self._contradict(client, step, before, "at the same moment as")
                    last[family] = step
                self._follow(client, step, open_, others)

    def _follow(self, client: str, step: Step, open_: dict[str, Step], others: Sequence[Step]) -> None:
        """Take a step over into what is in force, `open_`, by family; refuse what does not fit to that."""
        kind = step.action.kind
        if step.ends is not None:
            for family in families(kind):
                open_.pop(family, None)
            return
        for family in families(kind):
            now = open_.get(family)
            if kind == "rejoin" and not now and not any(other.action.kind in CUTS for other in others):
                self._refuse(
                    step.of, f"{client} is not cut off at {step.when}", "have it cut off before, or take this out"
                )
            elif kind in CUTS and now and not any(other.action.kind in ("rejoin", "restore") for other in others):
                self._contradict(client, step, now, "while it is cut off by")
            elif now and family != "reboot" and kind not in CUTS and now.number in self._timed:
                self._contradict(client, step, now, "before the end of")
            elif now and family == kind and step.number in self._timed:
                self._contradict(client, step, now, "which would be put back with it, within")
            if kind in ("rejoin", "restore"):
                open_.pop(family, None)
            elif family != "reboot":
                open_[family] = step

    def _contradict(self, client: str, step: Step, other: Step, how: str) -> None:
        if (step.of, other.of) in self._contradictions:
            return
        self._contradictions.add((step.of, other.of))
        what = f"{step.action.kind} of {client} at {step.when}, {how} {other.action.kind} of {other.of} at {other.when}"
        self._refuse(step.of, what, "have one of the two at another moment, on other devices, or for a shorter time")


def put_back(action: Action) -> Action:
    """Return what undoes an action that lasts, and nothing else."""
    return Action("rejoin" if action.kind in CUTS else f"un{action.kind}")


def words(action: Action) -> str:
    """Return an action as it is written, as in `throttle cpus 0.5`."""
    units = {"memory": (2**20, "m"), "rate_up": (1e6, "mbit"), "rate_down": (1e6, "mbit"), "loss": (0.01, "%")}
    units |= dict.fromkeys(("delay", "jitter"), (0.001, "ms"))
    parts = [action.kind]
    for key, value in action.parameters.items():
        size, unit = units.get(key, (1, ""))
        parts.append(f"{key} {value / size:g}{unit}")
    return " ".join(parts)


def _order(step: Step) -> tuple[int, float, bool, bool, int]:
    """Order steps by clock and moment; at one moment what ends goes before what begins."""
    return _CLOCKS.index(step.when.clock), step.when.value, bool(step.when.later), step.ends is None, step.number


def _concerns(target: Target, client: Mapping[str, Any]) -> bool:
    return target.device == client["device"] and (not target.clients or client["client"] in target.clients)


def _rounds(span: float | str) -> int:
    return int(str(span).split()[0])


def _markov(churn: Markov, random: Random) -> Iterator[tuple[float, float]]:
    """Yield when a device is offline, from and to, in s."""
    begin = random.expovariate(1 / churn.up)
    while begin < churn.until:
        end = begin + random.expovariate(1 / churn.down)
        yield begin, end
        begin = end + random.expovariate(1 / churn.up)


def _diurnal(churn: Diurnal, random: Random) -> Iterator[tuple[float, float]]:
    """Yield when a device is offline, from and to, in s."""
    late = (random.random() - 0.5) * churn.spread
    for number in count(-1):
        begin = (number + late + churn.online / 2) * churn.period
        end = begin + (1 - churn.online) * churn.period
        if begin >= churn.until:
            return
        if end > 0:
            yield max(0.0, begin), end


def _read_trace(path: Path) -> dict[str, list[tuple[float, bool]]]:
    """Return the rows of a trace by device: second, online or not. Raises ValueError, which names the place."""
    states: dict[str, list[tuple[float, bool]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, skipinitialspace=True, strict=True)
            if not rows.fieldnames or _COLUMNS - set(rows.fieldnames):
                raise ValueError(f"{path}:1: has the columns {', '.join(rows.fieldnames or ['none'])}")
            for row in rows:
                place = f"{path}:{rows.line_num}"
                device, second, state = row["device"], _number(row["second"]), _ONLINE.get(str(row["state"]).lower())
                if not device or second is None or state is None:
                    raise ValueError(f"{place}: is not a row: {row['device']}, {row['second']}, {row['state']}")
                known = states.setdefault(device, [])
                if known and second <= known[-1][0]:
                    raise ValueError(f"{place}: second {second:g} of {device} is not after the row before it")
                known.append((second, state))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no CSV: {error}") from error
    if not states:
        raise ValueError(f"{path}: has no rows")
    return states


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _offline(states: Sequence[tuple[float, bool]]) -> Iterator[tuple[float, float]]:
    """Yield when a device is offline by its rows, from and to, in s; it is online before the first one."""
    since: float | None = None
    for second, online in states:
        if online and since is not None:
            yield since, second
            since = None
        elif not online and since is None:
            since = second
    if since is not None:
        yield since, math.inf
