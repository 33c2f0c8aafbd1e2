"""fltestbed open."""

import contextlib
import http.client
import socket
import subprocess
import time
from enum import StrEnum
from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, Inventory
from fltestbed.errors import FltestbedError, HostError, HostsFailed, HostsUnreachable, InventoryError
from fltestbed.inventory import Monitoring, load
from fltestbed.paths import find_inventory, state_dir
from fltestbed.remote import tunnel

_PATHS = {"grafana": "/api/health", "prometheus": "/-/ready"}
_WAIT = 20  # seconds until the program has to answer


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
    testbed = load(find_inventory(inventory))
    if not testbed.monitoring:
        raise InventoryError(f"{testbed.path}: no host is in group monitoring", "put the host in it that is to monitor")
    port = testbed.monitoring.ports[program]
    here = _free_port(port)
    argv = tunnel(testbed.monitoring.host, here, port)
    with contextlib.ExitStack() as stack:
        process = None
        if argv:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        address = here if process else port
        _require_answer(testbed.monitoring, program, address, process)
        print(f"http://127.0.0.1:{address}", flush=True)
        if program == Program.grafana:
            password = (state_dir(testbed.name) / "pki" / "grafana.password").read_text(encoding="utf-8")
            print(f"user fltestbed, password {password}", flush=True)
        if process:
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
                raise _gone(testbed.monitoring)


def _free_port(wanted: int) -> int:
    """Return the port if it is free here, else another one."""
    for port in (wanted, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise FltestbedError("no port is free on this machine", "end some programs")


def _require_answer(
    monitoring: Monitoring, program: Program, port: int, process: "subprocess.Popen[bytes] | None"
) -> None:
    """Return as soon as the program answers. Raises HostsUnreachable or HostsFailed."""
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        if process and process.poll() is not None:
            raise _gone(monitoring)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", _PATHS[program])
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.3)
    error = HostError(program, f"nothing answers on its port {monitoring.ports[program]}")
    hint = "fltestbed up deploys it"
    if program == Program.grafana:
        hint += "; Grafana needs testbed_images_source: upstream, or an archive in images_grafana_archive"
    raise HostsFailed(f"{program} does not run", {monitoring.host.name: error}, hint)


def _gone(monitoring: Monitoring) -> HostsUnreachable:
    error = HostError("ssh", "its own message is above")
    return HostsUnreachable(
        "the host cannot be reached", {monitoring.host.name: error}, "check power, network and ansible_host"
    )
