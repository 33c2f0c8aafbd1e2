"""fltestbed logs."""

from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, Inventory
from fltestbed.errors import HostError, HostsFailed, HostsUnreachable, InventoryError
from fltestbed.inventory import SERVER_SERVICES, Host, Testbed, client_services, load
from fltestbed.paths import find_inventory, nearest
from fltestbed.remote import SSH_FAILED, stream


def logs(
    what: Annotated[str, typer.Argument(metavar="HOST|CLIENT|server", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    inventory: Inventory = DEFAULT_INVENTORY,
) -> None:
    """Show what the containers last said, 200 lines each.

    HOST shows all of a host, CLIENT what belongs to one client, server the SuperLink, the ServerApp and the proxy.
    """
    testbed = load(find_inventory(inventory))
    host, services = _find(testbed, what)
    compose = ["docker", "compose", "-p", f"fltestbed-{testbed.name}", "logs", "--tail", "200", *["-f"] * follow]
    code = stream(host, [*compose, *services], follow=follow)
    if code == SSH_FAILED:
        error = HostError("ssh", "its own message is above")
        raise HostsUnreachable(
            "the host cannot be reached", {host.name: error}, "check power, network and ansible_host"
        )
    if code:
        error = HostError("docker compose logs", f"it ended with exit code {code}")
        hint = "the message above says why: fltestbed up deploys what is missing, and sudo must not ask for a password"
        raise HostsFailed("there are no logs to show", {host.name: error}, hint)


def _find(testbed: Testbed, what: str) -> tuple[Host, tuple[str, ...]]:
    """Return the host and its services that a name means; no services means all."""
    hosts = {host.name: host for host in testbed.hosts}
    clients = {client["client"]: client["device"] for client in testbed.clients}
    if what == "server":
        return testbed.server, SERVER_SERVICES
    if what in hosts:
        return hosts[what], ()
    if what in clients:
        return hosts[clients[what]], client_services(what)
    raise InventoryError(
        f"{testbed.path}: there is no host or client {what!r}", nearest(what, {"server", *hosts, *clients})
    )
