"""fltestbed throttle, shape, pause, kill, partition, reboot, rejoin, restore."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Inventory, Verbose
from fltestbed.cli._verbs import Options, ask_password, play
from fltestbed.inventory import load
from fltestbed.paths import find_inventory
from fltestbed.runner import Event

_HELP = "Devices, clients, groups, or all."
Devices = Annotated[list[str], typer.Argument(show_default=False, help=_HELP)]
AllDevices = Annotated[list[str] | None, typer.Argument(show_default="all", help=_HELP)]
Share = Annotated[float, typer.Option(help="Only this share of what is named, drawn at random.")]
Seed = Annotated[int, typer.Option(help="Of --share: the same seed draws the same.")]


def throttle(
    devices: Devices,
    cpus: Annotated[str | None, typer.Option(metavar="CORES", help="CPU limit of each client, as in 0.5.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Its memory limit, as in 512m.")] = None,
    share: Share = 1.0,
    seed: Seed = 0,
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Change the limits of clients, at once and without a restart."""
    _change("throttle", {"cpus": cpus, "memory": memory}, devices, share, seed, inventory, verbose, ask_become_pass)


def shape(
    devices: Devices,
    rate: Annotated[str | None, typer.Option(metavar="RATE", help="Most in each direction, as in 5mbit.")] = None,
    rate_up: Annotated[str | None, typer.Option(metavar="RATE", help="Most to the server.")] = None,
    rate_down: Annotated[str | None, typer.Option(metavar="RATE", help="Most from the server.")] = None,
    delay: Annotated[str | None, typer.Option(metavar="TIME", help="In each direction, as in 80ms.")] = None,
    jitter: Annotated[str | None, typer.Option(metavar="TIME", help="By how much the delay varies.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="SHARE", help="Of packets in each direction, as in 1%.")] = None,
    share: Share = 1.0,
    seed: Seed = 0,
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Slow the network between devices and the server's testbed.

    Nothing else is slowed, SSH neither. A shape replaces the one before.
    """
    given = {"rate": rate, "rate_up": rate_up, "rate_down": rate_down, "delay": delay, "jitter": jitter, "loss": loss}
    _change("shape", given, devices, share, seed, inventory, verbose, ask_become_pass)


def _without_parameters(kind: str, text: str) -> Callable[..., None]:
    """Return the command of a condition that is either in force or not."""

    def command(
        devices: Devices,
        share: Share = 1.0,
        seed: Seed = 0,
        inventory: Inventory = DEFAULT_INVENTORY,
        verbose: Verbose = 0,
        ask_become_pass: AskBecomePass = False,
    ) -> None:
        _change(kind, {}, devices, share, seed, inventory, verbose, ask_become_pass)

    command.__name__, command.__doc__ = kind, text
    return command


pause = _without_parameters("pause", "Freeze clients until they rejoin.")
kill = _without_parameters("kill", "End clients, as a crash would; they stay dead until they rejoin.")
partition = _without_parameters(
    "partition", "Cut devices off from the server's testbed until they rejoin.\n\nSSH and monitoring go on."
)
reboot = _without_parameters("reboot", "Start devices anew.\n\nIt does not wait until they are back.")


def rejoin(
    devices: AllDevices = None,
    share: Share = 1.0,
    seed: Seed = 0,
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Undo pause, kill and partition."""
    _change("rejoin", {}, devices or ["all"], share, seed, inventory, verbose, ask_become_pass)


def restore(
    devices: AllDevices = None,
    share: Share = 1.0,
    seed: Seed = 0,
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Put every condition back to what the inventory says."""
    _change("restore", {}, devices or ["all"], share, seed, inventory, verbose, ask_become_pass)


def _change(
    kind: str,
    options: Mapping[str, str | None],
    names: list[str],
    share: float,
    seed: int,
    inventory: str,
    verbose: int,
    ask_become_pass: bool,
) -> None:
    """Check what is asked, and let every device do it, or none where one of them can't."""
    from fltestbed.conditions import action, targets

    testbed = load(find_inventory(inventory))
    given = {key: value for key, value in options.items() if value is not None}
    action(kind, given)
    chosen = targets(testbed, names, kind, share=share, seed=seed)
    extra_vars: dict[str, Any] = {
        "conditions_kind": kind,
        "conditions_parameters": given,
        "conditions_clients": {target.device: list(target.clients) for target in chosen if target.clients},
    }
    limit = ",".join(target.device for target in chosen)
    password = ask_password(ask_become_pass)
    options_ = Options(limit=limit, verbose=verbose, become_password=password)
    play("conditions", testbed.path, options_, extra_vars, _outcome).require_success()


def _outcome(event: Event) -> str:
    text = event.result.get("text") if event.kind == "ok" and event.module == "testbed_conditions" else ""
    return f"{event.host}: {text}" if text else ""
