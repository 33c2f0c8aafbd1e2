"""Says which conditions are in force on a device, by the file that names them."""

from __future__ import annotations

import json
from pathlib import Path

STATE = Path("/var/lib/fltestbed")
OF_NETWORK = ("shape", "network", "partition")
LOST = (*OF_NETWORK, "pause")  # what a reboot undoes


def boot():
    """Return what tells one start of this system from the next, in a container too."""
    kernel, first = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/1/stat")
    return f"{kernel.read_text().strip()} {first.read_text().rpartition(')')[2].split()[19]}"


def as_size(count):
    return f"{count / 2**20:.0f}m"


def in_words(entry):
    """Return an entry of the state as a person reads it."""
    units = {
        "cpus": lambda value: f"{value:g} cpus",
        "memory": lambda value: f"{as_size(value)} of memory",
        "rate_up": lambda value: f"{value / 1e6:g} mbit up",
        "rate_down": lambda value: f"{value / 1e6:g} mbit down",
        "delay": lambda value: f"{value * 1e3:g} ms delay",
        "jitter": lambda value: f"{value * 1e3:g} ms jitter",
        "loss": lambda value: f"{value * 100:g} % loss",
    }
    values = ", ".join(units[key](value) for key, value in entry["parameters"].items())
    done = {
        "throttle": "throttled to",
        "shape": "network shaped to",
        "network": "network of the inventory:",
        "pause": "paused",
        "kill": "killed",
        "partition": "cut off from the server",
    }
    return " ".join(part for part in (entry["client"], done[entry["kind"]], values) if part)


class InForce:
    """What is in force of one testbed on this device."""

    def __init__(self, project):
        self.project = project
        self.file = STATE / f"conditions-{project[len('fltestbed-') :]}.json"

    def read(self):
        """Return the entries in force by what they are of."""
        try:
            return json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}

    def standing(self):
        """Return what is in force, a row each: kind, client, parameters, since, lost (in a reboot), text."""
        now = boot()
        return [
            {key: entry[key] for key in ("kind", "client", "parameters", "since")}
            | {"lost": entry["kind"] in LOST and entry["boot"] != now, "text": in_words(entry)}
            for entry in self.read().values()
        ]
