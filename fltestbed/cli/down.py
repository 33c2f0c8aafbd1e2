"""fltestbed down."""

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Check, Diff, Inventory, Limit, Verbose, Yes
from fltestbed.cli._verbs import Options, ask_password, confirm, play
from fltestbed.inventory import load
from fltestbed.paths import find_inventory
from fltestbed.runner import lock


def down(
    inventory: Inventory = DEFAULT_INVENTORY,
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
    confirm(f"Remove the testbed {testbed.name} from {limit or f'its {len(testbed.hosts)} hosts'}?", yes or check)
    with lock(testbed.name):
        play(
            "down", testbed.path, Options(limit, "", check, diff, verbose, ask_password(ask_become_pass))
        ).require_success()
