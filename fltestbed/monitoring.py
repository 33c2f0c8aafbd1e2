"""The way to a testbed's Prometheus and Grafana: through SSH, to the loopback address of the host that monitors."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from fltestbed.errors import FltestbedError, HostError, HostsFailed, HostsUnreachable
from fltestbed.inventory import Monitoring
from fltestbed.remote import tunnel

_PATHS = {"grafana": "/api/health", "prometheus": "/-/ready"}
_WAIT = 20  # seconds until the program has to answer


@contextlib.contextmanager
def opened(monitoring: Monitoring, program: str) -> "Iterator[tuple[int, subprocess.Popen[bytes] | None]]":
    """Yield a port of this machine's loopback address where grafana or prometheus answers, and the ssh that brings it.

    There is no ssh where this machine is the host. Raises HostsUnreachable or HostsFailed.
    """
    port = monitoring.ports[program]
    here = _free_port(port)
    argv = tunnel(monitoring.host, here, port)
    with contextlib.ExitStack() as stack:
        process = None
        if argv:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        address = here if process else port
        _require_answer(monitoring, program, address, process)
        yield address, process


def unreachable(monitoring: Monitoring) -> HostsUnreachable:
    """Return the error to raise when the ssh to the host that monitors has ended."""
    error = HostError("ssh", "its own message is above")
    return HostsUnreachable(
        "the host cannot be reached", {monitoring.host.name: error}, "check power, network and ansible_host"
    )


class Prometheus:
    """The API of a Prometheus that answers on a port of this machine's loopback address."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series that an expression yields at a time (Unix s; now): `metric`, and `value` or `values`.

        Raises FltestbedError when Prometheus refuses the expression or does not answer.
        """
        asked = {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"})
        answer = self._get(f"/query?{urllib.parse.urlencode(asked)}")
        return list(answer["result"])

    def scrape_interval(self) -> float:
        """Return the longest time, in s, between two scrapes of a device's exporter."""
        targets = self._get("/targets?state=active")["activeTargets"]
        waits = [_seconds(target["scrapeInterval"]) for target in targets if target["scrapePool"] != "serverapp"]
        return max(waits, default=10.0)

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"{self._address}{path}", timeout=60) as answer:  # noqa: S310 to itself
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise FltestbedError(f"Prometheus refuses {urllib.parse.unquote_plus(path)}: {said}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FltestbedError(f"Prometheus does not answer: {error}") from error


def _seconds(duration: str) -> float:
    """Return a duration such as 1m30s, as Prometheus writes it, in s."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|[smhd])", duration))


def _free_port(wanted: int) -> int:
    """Return the port if it is free here, else another one."""
    for port in (wanted, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise FltestbedError("no port is free on this machine", "end some programs")


def _require_answer(monitoring: Monitoring, program: str, port: int, process: "subprocess.Popen[bytes] | None") -> None:
    """Return as soon as the program answers. Raises HostsUnreachable or HostsFailed."""
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        if process and process.poll() is not None:
            raise unreachable(monitoring)
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
    if program == "grafana":
        hint += "; Grafana needs testbed_images_source: upstream, or an archive in images_grafana_archive"
    raise HostsFailed(f"{program} does not run", {monitoring.host.name: error}, hint)
