"""Writes docs/reference-cli.md: what every command's --help says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import typer

from fltestbed.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "reference-cli.md"


def page() -> str:
    """Return the page as it should be."""
    parts = ["# Command line", "Written by `python scripts/reference_cli.py`; do not edit by hand."]
    for names in _commands(typer.main.get_command(app)):
        parts += [f"## {' '.join(['fltestbed', *names])}", f"```\n{_help(names).strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _commands(command: click.Command, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield names
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*names, name))


def _help(names: tuple[str, ...]) -> str:
    return subprocess.run(
        [sys.executable, "-c", "from fltestbed.cli import main; main()", *names, "--help"],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
