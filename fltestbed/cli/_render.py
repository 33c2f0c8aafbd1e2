"""Turns rows into a table or JSON on stdout, and errors into text on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fltestbed.cli._options import Format
from fltestbed.errors import FltestbedError, HostsError

Rows = Sequence[Mapping[str, Any]]


def show(parts: Mapping[str, Rows], output: Format) -> None:
    """Print named lists of rows: one JSON object, or a table for each that has rows."""
    if output is Format.json:
        json.dump(parts, sys.stdout, indent=2)
        print()
        return
    if tables := [f"{title.upper()}\n{table(rows)}" for title, rows in parts.items() if rows]:
        print("\n\n".join(tables))


def table(rows: Rows) -> str:
    """Return rows as aligned columns: the keys of the first row, numbers to the right."""
    heads = list(rows[0])
    cells = [[cell(head, row.get(head)) for head in heads] for row in rows]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    kinds = [{type(row.get(head)) for row in rows} - {type(None)} for head in heads]
    right = [bool(kind) and kind <= {int, float} for kind in kinds]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [[head.replace("_", " ") for head in heads], *cells]
    ]
    return "\n".join(lines)


def cell(head: str, value: Any) -> str:
    """Return a value as a table shows it; bytes of memory as Docker writes them."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if head.startswith("memory") and isinstance(value, int):
        return f"{value / 1024**2:g}m"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def explain(error: FltestbedError) -> str:
    """Return an error as text: what is wrong, on which host and task, and what to do."""
    lines = [f"error: {error.message}"]
    if isinstance(error, HostsError):
        for name, (task, message) in sorted(error.hosts.items()):
            lines.append(f"  {name}: {task}" if task else f"  {name}")
            lines += [f"    {line}" for line in message.splitlines()]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)
