"""fltestbed init."""

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, TypeVar

import typer

from fltestbed.errors import Cancelled, InventoryError
from fltestbed.inventory import is_address, is_user, load, profiles
from fltestbed.new_inventory import Answers, copy, folder_for, make, parse_devices
from fltestbed.paths import nearest

T = TypeVar("T")


class Template(StrEnum):
    """A built-in inventory to begin with."""

    virtual = "virtual"
    single_host = "single-host"
    raspberry_pi = "raspberry-pi"


def init(
    name: Annotated[str, typer.Argument(show_default=False)],
    template: Annotated[
        Template | None,
        typer.Option("--from", show_default=False, help="The built-in inventory to copy; without it, you are asked."),
    ] = None,
) -> None:
    """Write ./inventories/NAME, an inventory to edit."""
    folder_for(name)
    if template is None and not sys.stdin.isatty():
        raise typer.BadParameter(
            f"there is no terminal to ask on; give one of {', '.join(Template)}", param_hint="--from"
        )
    folder = copy(name, template.value) if template else make(name, _ask())
    testbed = load(folder)
    print(f"{folder}: hosts {len(testbed.hosts)}, clients {len(testbed.clients)}")
    steps = ["lab up"] if template is Template.virtual else []
    print("edit it if need be, then:" if template else "then:")
    for step in [*steps, "check", "up", "run fashion-mnist-cnn"]:
        print(f"  fltestbed {step} -i {name}")


def _ask() -> Answers:
    """Ask for a testbed's hosts. Raises Cancelled."""
    try:
        server = _prompt("server's address", "", _address)
        user = _prompt("user that SSH logs in as", "pi", _user)
        devices = _prompt(
            "devices, as in pi-1=192.0.2.21 pi-2=192.0.2.22", "", lambda text: parse_devices(text, {"server": server})
        )
        known, profile = profiles(), "rpi4"
        chosen = {}
        for name, address in devices.items():
            profile = _prompt(f"profile of {name} ({', '.join(known)})", profile, lambda text: _one_of(text, known))
            chosen[name] = (address, profile)
    except typer.Abort:
        raise Cancelled("nothing was written", "fltestbed init NAME --from raspberry-pi asks nothing") from None
    return Answers(server, user, chosen)


def _prompt(question: str, default: str, parse: Callable[[str], T]) -> T:
    """Ask until the answer is one."""
    while True:
        try:
            return parse(str(typer.prompt(question, default=default or None, err=True)).strip())
        except InventoryError as error:
            print(f"{error.message}: {error.hint}", file=sys.stderr)


def _address(text: str) -> str:
    if not is_address(text):
        raise InventoryError(f"{text!r} is not an address", "write an IP address or a host's name alone")
    return text


def _user(text: str) -> str:
    if not is_user(text):
        raise InventoryError(f"{text!r} is not a user", "write a login name, as in pi")
    return text


def _one_of(text: str, known: list[str]) -> str:
    if text not in known:
        raise InventoryError(f"there is no profile {text!r}", nearest(text, known))
    return text
