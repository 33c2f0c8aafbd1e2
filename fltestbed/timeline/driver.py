"""Carries a schedule out beside a run, and tells what became of each step."""

import heapq
import itertools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, Self

from fltestbed.conditions import Action, Outcome
from fltestbed.timeline.schedule import Clock, Step, families, words
from fltestbed.timeline.schema import CUTS

Row = dict[str, Any]
_PATIENCE = 45.0  # s that what a device is at when the run ends gets to come to its end


class Conditions(Protocol):
    """What changes conditions: `fltestbed.conditions.Sessions`."""

    def apply(self, device: str, action: Action, clients: Sequence[str] = ()) -> Outcome:
        """Do an action now; what cannot be done is an outcome too."""

    def close(self) -> dict[str, Outcome]:
        """Put back all that was changed; return what became of that on each device."""


class Ledger(Protocol):
    """Where it is written: `fltestbed.timeline.conduct.Ledger`."""

    def begin(self) -> None:
        """Take in that the first round began."""

    def write(self, row: Row) -> None:
        """Write an event."""


class Driver:
    """Does each step when it is due, those of a device one after the other, and writes a row of each.

    `hear` tells it how the run goes. Leaving it ends it: what never was due is said to be so, and what was changed is
    put back. `clients` are those of each device. docs/reference-results.md describes the rows (events.jsonl, kind
    timeline); their times are on the clock of the server's host, as its messages tell it.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        conditions: Conditions,
        clients: Mapping[str, Sequence[str]],
        ledger: Ledger,
    ) -> None:
        self._conditions = conditions
        self._clients = clients
        self._ledger = ledger
        self._news = threading.Condition()  # for all below; moments are of time.monotonic
        self._waiting: dict[Clock, list[Step]] = {"seconds": [], "round": [], "accuracy": []}
        for step in steps:
            self._waiting[step.when.clock].append(step)
        self._later: dict[int, list[Step]] = defaultdict(list)  # what is put back when a round begins
        self._due: list[tuple[float, int, Step]] = []
        self._order = itertools.count()
        self._round = 0
        self._here = time.time() - time.monotonic()
        self._there = self._here  # the same of the server's clock
        self._ended = False
        self._force: dict[tuple[str, str], _Force] = {}  # by client and family
        self._workers: dict[str, _Worker] = {}
        self._timer = threading.Thread(target=self._keep_time, daemon=True)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._ended = True
            self._news.notify()
        self._timer.join()
        until = time.monotonic() + _PATIENCE
        for worker in self._workers.values():
            worker.tasks.put(None)
        for worker in self._workers.values():
            worker.join(max(0.0, until - time.monotonic()))
        now = time.monotonic()
        left = [*(step for _, _, step in self._due), *itertools.chain(*self._waiting.values())]
        for step in sorted(left, key=lambda step: step.number):
            if step.ends is None:
                self._note(step, now, None, "not due", f"{words(step.action)}: the run ended before {step.when}")
        for device, outcome in self._conditions.close().items():
            if device in self._workers:
                self._note_end(device, now, outcome)

    def begin(self, age: float = 0.0) -> None:
        """Take in that the first round began `age` s ago; of an app that tells of no rounds, that the run did."""
        with self._news:
            if not self._round:
                moment = time.monotonic() - age
                self._ledger.begin()
                for step in self._waiting["seconds"]:
                    self._put(moment + step.when.value, step)
                self._waiting["seconds"] = []
                self._begin_round(1, moment)

    def hear(self, said: Mapping[str, Any]) -> None:
        """Take in what the module testbed_run said of the run: that the first round began, or that one has ended."""
        row, age = said.get("round"), said.get("age")
        if age is None:
            return
        heard = time.monotonic()
        with self._news:
            self._there = said["now"] - heard
        self.begin(age + (row["seconds"] if row else 0.0))
        if not row:
            return
        with self._news:
            accuracy = row["server_accuracy"]
            reached = [
                step for step in self._waiting["accuracy"] if accuracy is not None and accuracy >= step.when.value
            ]
            self._reach("accuracy", reached, heard - age)
            self._begin_round(row["round"] + 1, heard - age)

    def _begin_round(self, number: int, moment: float) -> None:
        self._round = number
        for step in self._later.pop(number, []):
            self._put(moment, step)
        self._reach("round", [step for step in self._waiting["round"] if step.when.value <= number], moment)

    def _reach(self, clock: Clock, steps: Sequence[Step], moment: float) -> None:
        self._waiting[clock] = [step for step in self._waiting[clock] if step not in steps]
        for step in steps:
            self._put(moment, step)

    def _put(self, moment: float, step: Step) -> None:
        """Have a step done at a moment, or a time after it."""
        after = step.when.later if isinstance(step.when.later, float) else 0.0
        heapq.heappush(self._due, (moment + after, next(self._order), step))
        self._news.notify()

    def _keep_time(self) -> None:
        """Hand each step that is due to its device's worker."""
        with self._news:
            while not self._ended:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is None or left > 0:
                    self._news.wait(left)
                    continue
                moment, _, step = heapq.heappop(self._due)
                if isinstance(step.when.later, str):  # some rounds after this moment
                    begins = self._round + int(step.when.later.split()[0])
                    self._later[begins].append(replace(step, when=step.when._replace(later=0.0)))
                    continue
                device = step.target.device
                if device not in self._workers:
                    self._workers[device] = _Worker(self._do)
                self._workers[device].tasks.put((moment, step))

    def _do(self, moment: float, step: Step) -> None:
        with self._news:
            reason = self._against(step)
        if reason:
            self._note(step, moment, None, "skipped", f"{words(step.action)}: {reason}")
            return
        outcome = self._conditions.apply(step.target.device, step.action, step.target.clients)
        with self._news:
            self._take_over(step, outcome.ok)
        said = words(step.action) if outcome.ok else f"{words(step.action)}: {outcome.text}"
        self._note(step, moment, outcome, "ok" if outcome.ok else "failed", said)

    def _against(self, step: Step) -> str:
        """Return why a step makes no sense now; empty where it does. What only may be in force can be put back."""
        if self._ended:
            return "the run has ended"
        held = [force for key in self._keys(step) if (force := self._force.get(key))]
        if step.ends is not None:
            return "" if any(force.step == step.ends for force in held) else "what it would put back is not in force"
        if step.action.kind == "rejoin":
            return "" if held else "it is not cut off"
        cut = next((force for force in held if force.certain), None)
        return f"it is cut off already, by step {cut.step}" if cut and step.action.kind in CUTS else ""

    def _take_over(self, step: Step, done: bool) -> None:
        undoes = step.ends is not None or step.action.kind in ("rejoin", "restore")
        for key in self._keys(step):
            if not undoes:
                self._force[key] = _Force(step.number, done)
            elif done:
                self._force.pop(key, None)

    def _keys(self, step: Step) -> list[tuple[str, str]]:
        clients = step.target.clients or self._clients[step.target.device]
        return [(client, family) for client in clients for family in families(step.action.kind)]

    def _note(self, step: Step, planned: float, outcome: Outcome | None, how: str, text: str) -> None:
        about: Row = {
            "client": ", ".join(step.target.clients) or None,
            "step": step.number,
            "action": step.action.kind,
            "parameters": dict(step.action.parameters),
            "of": step.of,
            "when": str(step.when),
            "ends": step.ends,
        }
        self._tell(step.target.device, planned, outcome, how, text, about)

    def _note_end(self, device: str, planned: float, outcome: Outcome) -> None:
        about: Row = {"client": None, "step": None, "action": "restore", "parameters": {}, "ends": None}
        how = "ok" if outcome.ok else "failed"
        self._tell(device, planned, outcome, how, outcome.text, about | {"of": "end of the run", "when": "end"})

    def _tell(self, device: str, planned: float, outcome: Outcome | None, how: str, text: str, about: Row) -> None:
        started = outcome.started - self._here if outcome else time.monotonic()
        is_late = how in ("ok", "failed")
        self._ledger.write(
            {
                "time": self._iso(started),
                "kind": "timeline",
                "device": device,
                "client": about["client"],
                "text": text,
                "outcome": how,
                "planned": None if how == "not due" else self._iso(planned),
                "error_seconds": round(started - planned, 4) if is_late else None,
                "took_seconds": round(outcome.ended - outcome.started, 4) if outcome else None,
            }
            | about
        )

    def _iso(self, moment: float) -> str:
        return datetime.fromtimestamp(moment + self._there, UTC).isoformat(timespec="milliseconds")


class _Force(NamedTuple):
    """What is in force; `certain` is false where the device did not say that it did it."""

    step: int
    certain: bool


class _Worker(threading.Thread):
    """Does one device's steps one after the other, until it is given None."""

    def __init__(self, do: Callable[[float, Step], None]) -> None:
        super().__init__(daemon=True)
        self.tasks: queue.SimpleQueue[tuple[float, Step] | None] = queue.SimpleQueue()
        self._do = do
        self.start()

    def run(self) -> None:
        while (task := self.tasks.get()) is not None:
            self._do(*task)
