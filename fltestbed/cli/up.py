"""fltestbed up."""

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Check, Diff, Inventory, Limit, Tags, Verbose
from fltestbed.cli._verbs import Options, ask_password, play
from fltestbed.inventory import load
from fltestbed.paths import find_inventory
from fltestbed.runner import lock


def up(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    tags: Tags = "",
    check: Check = False,
    diff: Diff = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Bring the hosts in line with the inventory.

    Doing it again changes only what differs; a training that runs goes on.
    """
    testbed = load(find_inventory(inventory))
    with lock(testbed.name):
        play(
            "up", testbed.path, Options(limit, tags, check, diff, verbose, ask_password(ask_become_pass))
        ).require_success()
