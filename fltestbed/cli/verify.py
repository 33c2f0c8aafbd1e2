"""fltestbed verify."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fltestbed.cli._options import (
    DEFAULT_INVENTORY,
    AskBecomePass,
    Format,
    Inventory,
    Limit,
    OutputFormat,
    Verbose,
)
from fltestbed.cli._render import show
from fltestbed.cli._verbs import Options, alone, ask_password, play
from fltestbed.errors import HostError, HostsFailed
from fltestbed.inventory import load
from fltestbed.paths import find_inventory, state_dir
from fltestbed.verification import BUSY, MEND, OFF, Row, judge

_SHOWN = ("device", "client", "figure", "unit", "asked", "kernel", "measured", "error", "verdict")


def verify(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Measure on every client that it gets what the inventory asks for.

    CPU, memory and network are loaded for half a minute a client, in its own container. No run may be on.
    """
    testbed = load(find_inventory(inventory))
    options = Options(limit=limit, verbose=verbose, become_password=ask_password(ask_become_pass))
    with alone(testbed):
        result = play("verify", testbed.path, options)
        rows = judge(testbed.clients, result.results("testbed_verify"))
        keep(state_dir(testbed.name) / "verify.json", rows)
    shown = rows if output is Format.json else [{key: row[key] for key in _SHOWN} for row in rows]
    show({"verified": shown}, output)
    for row in rows:
        if row["verdict"] == BUSY:
            print(f"{row['client']}: {row['figure']}: {row['reason']}", file=sys.stderr)
    require_as_asked(rows)
    result.require_success()


def keep(file: Path, rows: Sequence[Row]) -> None:
    """Write the rows with the time, beside those of clients that were not measured now."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    now, measured = datetime.now(UTC).isoformat(timespec="seconds"), {row["client"] for row in rows}
    kept = [row for row in before if row["client"] not in measured] + [row | {"time": now} for row in rows]
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def require_as_asked(rows: Sequence[Row]) -> None:
    """Raise HostsFailed when a figure is not what was asked for."""
    problems: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == OFF:
            problems.setdefault(row["device"], []).append(f"{row['client']}: {row['figure']}: {row['reason']}")
    if problems:
        raise HostsFailed(
            f"{len(problems)} of {len({row['device'] for row in rows})} devices do not give what is asked for",
            {device: HostError("", "\n".join(lines)) for device, lines in problems.items()},
            MEND,
        )
