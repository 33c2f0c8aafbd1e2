"""fltestbed open."""

import contextlib
from enum import StrEnum
from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, Inventory
from fltestbed.errors import InventoryError
from fltestbed.inventory import load
from fltestbed.paths import find_inventory, state_dir


class Program(StrEnum):
    """What can be opened."""

    grafana = "grafana"
    prometheus = "prometheus"


def open_(
    program: Annotated[Program, typer.Argument(show_default=False)],
    inventory: Inventory = DEFAULT_INVENTORY,
) -> None:
    """Bring Grafana or Prometheus to this machine, through SSH, until Ctrl-C.

    The address to open, and Grafana's user and password, are printed.
    """
    from fltestbed.monitoring import opened, unreachable

    testbed = load(find_inventory(inventory))
    if not testbed.monitoring:
        raise InventoryError(f"{testbed.path}: no host is in group monitoring", "put the host in it that is to monitor")
    with opened(testbed.monitoring, program) as (port, process):
        print(f"http://127.0.0.1:{port}", flush=True)
        if program == Program.grafana:
            password = (state_dir(testbed.name) / "pki" / "grafana.password").read_text(encoding="utf-8")
            print(f"user fltestbed, password {password}", flush=True)
        if process:
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
                raise unreachable(testbed.monitoring)
