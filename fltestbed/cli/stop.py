"""fltestbed stop."""

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Inventory, Verbose
from fltestbed.cli._verbs import Options, ask_password, play
from fltestbed.inventory import load
from fltestbed.paths import find_inventory, runs_dir


def stop(
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Stop the run and collect what it has.

    The testbed stays up.
    """
    testbed = load(find_inventory(inventory))
    options = Options(verbose=verbose, become_password=ask_password(ask_become_pass))
    play("stop", testbed.path, options, {"runs_dir": str(runs_dir())}).require_success()
