"""A testbed of virtual devices, as the tests of this folder see it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).parents[2]
FLTESTBED = Path(sys.executable).parent / "fltestbed"
DEVICES = ("laptop", "pi-3", "pi-4")
SUBNET = "172.29.7."
OWN_DATA = "/srv/bars.npz"  # on every device, for test_device_data
T = TypeVar("T")


@dataclass
class Lab:
    """A working directory with an inventory, and the ways in which the tests look at its testbed."""

    folder: Path
    name: str = "e2e"

    @property
    def inventory(self) -> Path:
        return self.folder / "inventories" / self.name

    def command(self, *arguments: str) -> list[str]:
        return [str(FLTESTBED), *arguments, "-i", self.name]

    def environment(self) -> dict[str, str]:
        return os.environ | {"PWD": str(self.folder), "COLUMNS": "160"}

    def run(self, *arguments: str, code: int | None = 0) -> str:
        """Run fltestbed; return its standard output. Fails with everything it said when the exit code is another.

        None as the code is for any.
        """
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        print(f"$ fltestbed {' '.join(arguments)}\n{done.stderr[-6000:]}")
        assert code in (None, done.returncode), (
            f"exit code {done.returncode}, not {code}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        )
        return done.stdout

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start fltestbed in the background, both outputs in one pipe."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def status(self, code: int | None = 0) -> dict[str, Any]:
        return dict(json.loads(self.run("status", "--format", "json", code=code)))

    def on(self, device: str, *command: str, code: int | None = 0, seconds: float = 120) -> str:
        """Run a command as root on a virtual device, past Ansible and SSH."""
        done = subprocess.run(
            ["docker", "exec", f"{self.name}-{device}", *command],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert code is None or done.returncode == code, f"{device}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def started(self) -> dict[tuple[str, str], str]:
        """Return when each container was started, by device and service."""
        look = f"docker ps -aq --filter label=com.docker.compose.project=fltestbed-{self.name}"
        what = '{{index .Config.Labels "com.docker.compose.service"}} {{.State.StartedAt}}'
        found = {}
        for device in ("server", *DEVICES):
            for line in self.on(device, "sh", "-c", f"{look} | xargs docker inspect -f '{what}'").splitlines():
                service, started = line.split()
                found[device, service] = started
        return found

    def images(self) -> dict[str, set[str]]:
        """Return the images of every device's engine."""
        return {
            device: set(self.on(device, "docker", "images", "-q", "--no-trunc").split())
            for device in ("server", *DEVICES)
        }

    def latest_run(self) -> Path:
        return max((self.folder / "runs").iterdir())


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def wait_for(what: str, look: Callable[[], T], seconds: float = 300) -> T:
    """Return the first true answer of `look`."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)
    return answer
