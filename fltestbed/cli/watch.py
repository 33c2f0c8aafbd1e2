"""fltestbed watch."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, Inventory
from fltestbed.cli._render import cell, table
from fltestbed.errors import RunFailed
from fltestbed.inventory import load
from fltestbed.paths import find_inventory
from fltestbed.timeline.ledger import line
from fltestbed.watching import Client, View
from fltestbed.watching import watch as look

if TYPE_CHECKING:
    from rich.console import Group

_URGENT = (
    "unreachable",
    "stopped",
    "failed",
    "trains",
    "waits",
    "unknown",
    "done",
)  # who is shown where not all have room
_STYLES = {"unreachable": "red", "stopped": "red", "failed": "red", "trains": "green", "done": "dim"}
_ROUNDS = 5  # how many of the last rounds are shown, and of the last events
_MIB = 2**20


def watch(
    inventory: Inventory = DEFAULT_INVENTORY,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks at a host.")] = 2,
) -> None:
    """Show the run as it goes, until it ends or Ctrl-C, which leaves the run alone.

    Of each client: what it does, its CPU against its quota, its memory against its limit, its last round's time.
    Where the output is no terminal: a line for each change.
    """
    testbed = load(find_inventory(inventory))
    views = look(testbed, interval)
    view = None
    with contextlib.closing(views), contextlib.suppress(KeyboardInterrupt):
        view = _draw(views) if sys.stdout.isatty() else _tell(views)
    if not view or not view.ended:
        print("the run goes on; fltestbed stop ends it", file=sys.stderr)
    elif view.record["status"] != "finished":
        raise RunFailed(f"the run {view.run} is {view.record['status']}: {view.record['reason']}")


def _draw(views: Iterator[View]) -> View | None:
    """Show the views on the whole terminal, and leave the last one behind."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    view = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for view in views:
            live.update(picture(view, console.height), refresh=True)
    if view:
        console.print(picture(view, None))
    return view


def picture(view: View, height: int | None) -> "Group":
    """Return the view as rich draws it, in `height` lines; None: in as many as it takes."""
    from rich.console import Group
    from rich.text import Text

    record = view.record
    rounds = f"  round {record['round']}/{record['rounds']}" if record["rounds"] else ""
    reason = f": {record['reason']}" if record["reason"] else ""
    parts = [Text.assemble((view.run, "bold"), rounds, "  ", (record["status"], "bold"), reason), Text()]
    if last := view.rounds[-_ROUNDS:]:
        parts += [*map(Text, table([_round(row) for row in last]).splitlines()), Text()]
    if view.conditions:
        parts += [*(Text(line(row)) for row in view.conditions[-_ROUNDS:]), Text()]
    room = None if height is None else max(1, height - len(parts) - 3)
    shown, hidden = fitting(view.clients, room)
    head, *rows = table([_row(client) for client in shown]).splitlines()
    parts.append(Text(head))
    parts += [Text(row, _STYLES.get(client.state, "")) for row, client in zip(rows, shown, strict=True)]
    if hidden:
        counts = Counter(client.state for client in hidden)
        more = ", ".join(f"{counts[state]} {state}" for state in _URGENT if counts[state])
        parts.append(Text(f"… and {len(hidden)} more: {more}", "dim"))
    for part in parts:
        part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts)


def _round(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {"accuracy": "server_accuracy", "loss": "server_loss", "seconds": "seconds"}
    counts = {"ok": "clients_ok", "failed": "clients_failed"}
    return {"round": row["round"]} | {name: row[key] for name, key in (names | counts).items()}


def _row(client: Client) -> dict[str, str | float | None]:
    return {
        "client": client.name,
        "state": client.state,
        "CPU, cores": _against(client.cpu, client.cpus, "{:.2f}"),
        "memory, MiB": _against(_mib(client.memory), _mib(client.memory_limit), "{:.0f}"),
        "last round, s": client.seconds,
        "failure": client.row["failure"] if client.row else None,
    }


def fitting(clients: list[Client], room: int | None) -> tuple[list[Client], list[Client]]:
    """Return which clients fit into `room` lines, in the inventory's order, and which do not: the quietest ones."""
    if room is None or len(clients) <= room:
        return clients, []
    urgent = sorted(clients, key=lambda client: _URGENT.index(client.state))[:room]
    return [client for client in clients if client in urgent], [client for client in clients if client not in urgent]


def _mib(size: int | None) -> float | None:
    return None if size is None else size / _MIB


def _against(used: float | None, limit: float | None, form: str) -> str:
    """Return what is used of a limit, with its share."""
    if used is None:
        return "-"
    if not limit:
        return form.format(used)
    return f"{form.format(used)} of {limit:g} {used / limit:4.0%}"


def _tell(views: Iterator[View]) -> View | None:
    """Print a line for each change."""
    view, status, told, happened = None, "", 0, 0
    states: dict[str, str] = {}
    for view in views:
        if status != (status := view.record["status"]):
            reason = f": {view.record['reason']}" if view.record["reason"] else ""
            print(f"{view.run} is {status}{reason}", flush=True)
        for row in view.rounds[told:]:
            print(
                f"round {row['round']}/{view.record['rounds']}  accuracy {cell('', row['server_accuracy'])}  "
                f"loss {cell('', row['server_loss'])}  {row['seconds']:.1f} s  "
                f"clients {row['clients_ok']} ok, {row['clients_failed']} failed",
                flush=True,
            )
        told = len(view.rounds)
        for row in view.conditions[happened:]:
            print(line(row), flush=True)
        happened = len(view.conditions)
        for client in view.clients:
            if states.get(client.name, "unknown") != client.state:
                states[client.name] = client.state
                failure = f": {client.row['failure']}" if client.row and client.state == "failed" else ""
                print(f"{client.name} {client.state}{failure}", flush=True)
    return view
