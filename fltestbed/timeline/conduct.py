"""A run's timeline from its first to its last moment: the connections to the devices, and the driver."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fltestbed.conditions import Outcome, Sessions
from fltestbed.errors import HostError, PreflightError
from fltestbed.inventory import Testbed
from fltestbed.timeline.driver import Driver
from fltestbed.timeline.ledger import Ledger
from fltestbed.timeline.schedule import Step, words

_CHECKED = ("throttle", "shape", "partition", "reboot")
"""What a device can be asked beforehand if it can do it; the others depend on what runs just then."""


@contextlib.contextmanager
def conduct(steps: Sequence[Step], testbed: Testbed, folder: Path, say: Callable[[str], None]) -> Iterator[Driver]:
    """Open the connections that steps need, ask the devices if they can do them, and yield the driver of a run.

    The run's results go to `folder`, which is made when its first round begins: timeline.jsonl is the schedule, and
    events.jsonl grows with each event, as does a copy on the server host, for `fltestbed watch`. All conditions are
    put back at the end. Raises PreflightError where a device cannot do what is asked of it.
    """
    clients: dict[str, list[str]] = {}
    for client in testbed.clients:
        clients.setdefault(client["device"], []).append(client["client"])
    ledger = Ledger(steps, testbed, folder, say)
    try:
        with Sessions(testbed, dict.fromkeys(step.target.device for step in steps)) as sessions:
            _require_sudo(sessions.unreachable)
            for device, reason in sessions.unreachable.items():
                say(f"warning: {device} does not answer ({reason}); it is tried again when its next event is due")
            _require_possible(steps, sessions)
            with Driver(steps, sessions, clients, ledger) as driver:
                yield driver
    finally:
        ledger.close()


def _require_sudo(unreachable: Mapping[str, str]) -> None:
    wanting = {device: HostError("sudo", why) for device, why in unreachable.items() if why.startswith("sudo:")}
    if wanting:
        raise PreflightError(
            "a timeline needs a sudo that asks for no password",
            wanting,
            "allow it there (NOPASSWD), or run an experiment without a timeline",
        )


def _require_possible(steps: Sequence[Step], sessions: Sessions) -> None:
    distinct = {
        (step.target, step.action.kind, tuple(step.action.parameters.items())): step
        for step in steps
        if step.action.kind in _CHECKED and step.target.device not in sessions.unreachable
    }

    def ask(step: Step) -> Outcome:
        return sessions.check(step.target.device, step.action, step.target.clients)

    with ThreadPoolExecutor(max(1, len({target.device for target, _, _ in distinct}))) as pool:
        outcomes = list(zip(distinct.values(), pool.map(ask, distinct.values()), strict=True))
    refused = {
        step.target.device: HostError(f"{step.of}: {words(step.action)}", outcome.text)
        for step, outcome in reversed(outcomes)
        if not outcome.ok and step.target.device not in sessions.unreachable
    }
    if refused:
        count = f"{len(refused)} of {len({step.target.device for step in steps})} devices"
        raise PreflightError(f"{count} cannot do what the timeline asks of them", refused, "nothing was changed there")
