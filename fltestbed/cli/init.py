"""fltestbed init."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from click import Choice

from fltestbed.errors import Cancelled, InventoryError
from fltestbed.inventory import DIALABLE, Testbed, is_address, is_user, load, profiles, undialable
from fltestbed.new_inventory import Answers, copy, folder_for, is_virtual, make, parse_devices, populate, templates
from fltestbed.paths import nearest

T = TypeVar("T")


def init(
    name: Annotated[str, typer.Argument(show_default=False)],
    template: Annotated[
        str | None,
        typer.Option(
            "--from",
            click_type=Choice(templates()),
            show_default=False,
            help="The built-in inventory to copy; without it, you are asked.",
        ),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Draw virtual devices from the distributions in FILE."),
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.01, max=100, help="So many times the cpus and the memory of virtual devices.")
    ] = 1.0,
) -> None:
    """Write ./inventories/NAME, an inventory to edit."""
    folder_for(name)
    if not (template or population or sys.stdin.isatty()):
        raise typer.BadParameter(
            f"there is no terminal to ask on; give one of {', '.join(templates())}", param_hint="--from"
        )
    if template and population:
        raise typer.BadParameter("a population is of virtual devices of its own", param_hint="--from")
    virtual = bool(population) or (template is not None and is_virtual(template))
    if scale != 1 and not virtual:
        raise typer.BadParameter("only virtual devices can be scaled", param_hint="--scale")
    if population:
        folder = populate(name, population, scale)
    else:
        folder = copy(name, template, scale) if template else make(name, _ask())
    try:
        testbed = load(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    print(f"{folder}: hosts {len(testbed.hosts)}, clients {len(testbed.clients)}")
    if virtual:
        print(_sum(testbed))
    print("edit it if need be, then:" if template or population else "then:")
    for step in [*(["lab up"] if virtual else []), "check", "up", "run fashion-mnist-cnn"]:
        print(f"  fltestbed {step} -i {name}")


def _sum(testbed: Testbed) -> str:
    cpus = sum(client["cpus"] or 0 for client in testbed.clients)
    memory = sum(client["memory"] or 0 for client in testbed.clients) / 2**30
    return f"the clients have {cpus:g} cpus and {memory:.1f}g of memory together"


def _ask() -> Answers:
    """Ask for a testbed's hosts. Raises Cancelled."""
    try:
        server = _prompt("server's address", "", _server)
        user = _prompt("user that SSH logs in as", "pi", _user)
        devices = _prompt(
            "devices, as in pi-1=192.0.2.21 pi-2=192.0.2.22", "", lambda text: parse_devices(text, {"server": server})
        )
        known, profile = list(profiles()), "rpi4"
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


def _server(text: str) -> str:
    if not is_address(text):
        raise InventoryError(f"{text!r} is not an address", "write an IP address or a host's name alone")
    if why := undialable(text):
        raise InventoryError(why, DIALABLE)
    return text


def _user(text: str) -> str:
    if not is_user(text):
        raise InventoryError(f"{text!r} is not a user", "write a login name, as in pi")
    return text


def _one_of(text: str, known: list[str]) -> str:
    if text not in known:
        raise InventoryError(f"there is no profile {text!r}", nearest(text, known))
    return text
