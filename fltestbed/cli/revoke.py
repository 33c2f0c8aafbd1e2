"""fltestbed revoke."""

from typing import Annotated

import typer

from fltestbed import certificates
from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Inventory, Verbose, Yes
from fltestbed.cli._verbs import Options, alone, ask_password, confirm, play
from fltestbed.errors import InventoryError
from fltestbed.inventory import load
from fltestbed.paths import find_inventory, nearest, state_dir


def revoke(
    device: Annotated[str, typer.Argument(show_default=False)],
    undo: Annotated[bool, typer.Option("--undo", help="Let it in again: the next up makes a new key.")] = False,
    inventory: Inventory = DEFAULT_INVENTORY,
    yes: Yes = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Shut a device out for good, as when it was lost.

    DEVICE is a device, with all its clients, or one client. SuperLink refuses the key from now on, and up refuses
    an inventory that still has the client.
    """
    testbed = load(find_inventory(inventory))
    pki = state_dir(testbed.name) / "pki"
    held = certificates.revoked(pki)
    known = {client["client"]: client["device"] for client in testbed.clients}
    known |= {name: name for name in held if name not in known}
    names = [client for client, of in known.items() if device in (client, of)]
    if not names:
        hint = nearest(device, {*known, *known.values()})
        raise InventoryError(f"the testbed {testbed.name} has no device or client {device!r}", hint)
    with alone(testbed):
        if undo:
            if marked := [name for name in names if name in held]:
                certificates.readmit(pki, marked)
                print(f"{', '.join(marked)}: the next up makes a new key")
            else:
                print(f"{', '.join(names)}: not revoked, and nothing was changed; {_listed(held)}")
            return
        confirm(f"Shut {', '.join(names)} out of the testbed {testbed.name}?", yes)
        certificates.revoke(pki, names)
        options = Options(verbose=verbose, become_password=ask_password(ask_become_pass))
        play("revoke", testbed.path, options, {"superlink_revoked": names}).require_success()
        print(f"{', '.join(names)}: SuperLink refuses the key; take it out of the inventory before the next up")


def _listed(held: set[str]) -> str:
    return f"revoked are {', '.join(sorted(held))}" if held else "no key of this testbed is revoked"
