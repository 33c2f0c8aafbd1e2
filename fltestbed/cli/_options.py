"""The options that several commands share, under Ansible's names."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"


DEFAULT_INVENTORY = "virtual"

Inventory = Annotated[
    str,
    typer.Option(
        "--inventory",
        "-i",
        metavar="FOLDER",
        envvar="FLTESTBED_INVENTORY",
        help="The testbed: an inventory folder, or the name of one in ./inventories or of a built-in one.",
    ),
]
Limit = Annotated[str, typer.Option("--limit", "-l", metavar="HOSTS", help="Touch these hosts alone.")]
Tags = Annotated[str, typer.Option("--tags", "-t", metavar="TAGS", help="Run only the tasks with these tags.")]
Check = Annotated[bool, typer.Option("--check", "-C", help="Change nothing; say what would change.")]
Diff = Annotated[bool, typer.Option("--diff", "-D", help="Show what changes in files, in the log and with -v.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, help="Show Ansible's own output; more of it with -vv, -vvv."
    ),
]
AskBecomePass = Annotated[
    bool, typer.Option("--ask-become-pass", "-K", help="Ask for the password that sudo wants on the hosts.")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How the result is printed.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
