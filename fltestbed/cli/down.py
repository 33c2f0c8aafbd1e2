"""fltestbed down."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Check, Diff, Inventory, Limit, Verbose, Yes
from fltestbed.cli._verbs import Options, alone, ask_password, confirm, play, say_left_behind
from fltestbed.errors import HostError, HostsError
from fltestbed.inventory import load
from fltestbed.paths import find_inventory, state_dir
from fltestbed.runner import Event

_HOLDS = "containers, data and files of the testbed, where it came so far"


def down(
    inventory: Inventory = DEFAULT_INVENTORY,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Put the hosts back as they were before the first up."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Remove a testbed of this name even if others deployed it, or its keys are lost."),
    ] = False,
    yes: Yes = False,
    limit: Limit = "",
    check: Check = False,
    diff: Diff = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Remove the testbed from its hosts.

    Containers, data and files there go; results on this machine stay.
    """
    testbed = load(find_inventory(inventory))
    question = f"Remove the testbed {testbed.name} from {limit or f'its {len(testbed.hosts)} hosts'}"
    if purge:
        question += ", and with it the Docker engine, packages and settings that fltestbed brought there"
    confirm(f"{question}?", yes or check)
    options = Options(limit, "", check, diff, verbose, ask_password(ask_become_pass))
    with alone(testbed):
        result = play("down", testbed.path, options, {"host_purge": purge, "host_force": force}, line=kept)
        say_left_behind(testbed)
        try:
            result.require_success()
        except HostsError as error:
            records = state_dir(testbed.name) / "hosts"
            error.hosts = {
                name: HostError(at.task, f"{at.message}\nleft there: {left(records / f'{name}.json', purge)}")
                for name, at in error.hosts.items()
            }
            again = f"fltestbed down{' --purge' * purge} -i {inventory}"
            error.hint = f"when that is mended, {again} removes what is left, and does no harm where nothing is"
            raise


def kept(event: Event) -> str:
    """Return for which other testbeds a host's engine stays, on the event that says so."""
    others = event.result.get("testbeds") if event.kind == "ok" and event.module == "testbed_undo" else None
    return f"{event.host}: Docker engine, packages and settings stay for {', '.join(others)}" if others else ""


def left(record: Path, purge: bool) -> str:
    """Return what a host that was not dealt with still holds, by the controller's copy of its record."""
    if not record.exists():
        return "nothing, by the records on this machine"
    held = json.loads(record.read_text(encoding="utf-8"))
    lines = [_HOLDS]
    if purge and held["packages"]:
        lines.append(f"{len(held['packages'])} packages that came with it ({', '.join(held['packages'])})")
    if purge and held["images"]:
        lines.append(f"{len(held['images'])} images")
    if purge and held["daemon_options"]:
        lines.append(f"options in /etc/docker/daemon.json ({', '.join(held['daemon_options'])})")
    return "; ".join(lines)
