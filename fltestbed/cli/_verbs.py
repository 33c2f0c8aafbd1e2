"""From a command's options to a playbook's run, with its progress shown."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fltestbed.cli._progress import Progress, recap
from fltestbed.errors import Cancelled
from fltestbed.inventory import Testbed
from fltestbed.inventory_files import shown
from fltestbed.lock import lock
from fltestbed.paths import state_dir
from fltestbed.runner import Event, RunResult, run_playbook


@dataclass(frozen=True)
class Options:
    """The options that go to Ansible as they are."""

    limit: str = ""
    tags: str = ""
    check: bool = False
    diff: bool = False
    verbose: int = 0
    become_password: str = ""


def play(
    verb: str,
    inventory: Path,
    options: Options,
    extra_vars: Mapping[str, Any] | None = None,
    line: Callable[[Event], str] = lambda event: "",
) -> RunResult:
    """Run a verb's playbook and show its progress; `line` may add a line of its own for an event."""
    with Progress(verbose=options.verbose > 0, check=options.check) as progress:

        def on_event(event: Event) -> None:
            progress(event)
            if text := line(event):
                progress.say(text)

        result = run_playbook(
            verb,
            inventory,
            limit=options.limit,
            tags=options.tags,
            check=options.check,
            diff=options.diff,
            verbosity=options.verbose - 1 if options.verbose else 0,
            become_password=options.become_password,
            extra_vars=extra_vars,
            on_event=on_event,
        )
    recap(result)
    return result


def alone(testbed: Testbed) -> AbstractContextManager[None]:
    """Hold the testbed's lock, here and on its server host; what is odd about it is said. Raises Locked."""
    return lock(testbed.name, testbed.server, say=lambda line: print(line, file=sys.stderr, flush=True))


def say_left_behind(testbed: Testbed) -> None:
    """Say which hosts a deployment was recorded for that the inventory has no more, unless under another name."""
    files = {file.stem: file for file in sorted((state_dir(testbed.name) / "hosts").glob("*.json"))}
    machines = {name: json.loads(file.read_text(encoding="utf-8")).get("machine") for name, file in files.items()}
    names = {host.name for host in testbed.hosts}
    here = {machine for name, machine in machines.items() if name in names and machine}
    for name in sorted(files.keys() - names):
        if machines[name] not in here:
            print(
                f"{name} is not in the inventory any more, and what was deployed there is still there. Put it back for "
                f"fltestbed down --purge --limit {name}; or, if the device is gone, remove {shown(files[name])}",
                file=sys.stderr,
            )


def confirm(question: str, yes: bool) -> None:
    """Ask before something is taken away. Raises Cancelled unless the answer is yes."""
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise Cancelled("nothing was changed", "answer y, or give --yes where nobody can answer")


def ask_password(wanted: bool) -> str:
    """Ask for the hosts' sudo password if that is wanted, else return an empty one. Raises Cancelled."""
    if not wanted:
        return ""
    try:
        return str(typer.prompt("BECOME password", hide_input=True, err=True))
    except typer.Abort:
        raise Cancelled("nothing was changed", "--ask-become-pass needs a terminal to ask on") from None
