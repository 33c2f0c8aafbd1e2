"""fltestbed lab."""

import typer

from fltestbed.cli._options import (
    DEFAULT_INVENTORY,
    AskBecomePass,
    Check,
    Diff,
    Format,
    Inventory,
    Limit,
    OutputFormat,
    Tags,
    Verbose,
)
from fltestbed.cli._render import show
from fltestbed.cli._verbs import Options, ask_password, play
from fltestbed.inventory import load
from fltestbed.lock import lock
from fltestbed.paths import find_inventory

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Virtual devices, for a testbed without hardware.")


@app.command()
def up(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    tags: Tags = "",
    check: Check = False,
    diff: Diff = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Create or start the virtual devices."""
    testbed = load(find_inventory(inventory))
    with lock(testbed.name):
        play(
            "lab-up", testbed.path, Options(limit, tags, check, diff, verbose, ask_password(ask_become_pass))
        ).require_success()


@app.command()
def down(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    check: Check = False,
    diff: Diff = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Remove the virtual devices with all that is on them."""
    testbed = load(find_inventory(inventory))
    with lock(testbed.name):
        play(
            "lab-down", testbed.path, Options(limit, "", check, diff, verbose, ask_password(ask_become_pass))
        ).require_success()


@app.command()
def status(
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Show the virtual devices."""
    testbed = load(find_inventory(inventory))
    result = play("lab-status", testbed.path, Options(verbose=verbose, become_password=ask_password(ask_become_pass)))
    result.require_success()
    labs = result.results("testbed_virtual_lab").values()
    show({"devices": [{"device": name} | facts for lab in labs for name, facts in lab["devices"].items()]}, output)
