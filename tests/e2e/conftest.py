"""A testbed of virtual devices for the tests of this folder: made once, from an inventory that is nobody else's."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

REPOSITORY = Path(__file__).parents[2]
FLTESTBED = Path(sys.executable).parent / "fltestbed"
DEVICES = ("laptop", "pi-3", "pi-4")
SUBNET = "172.29.7."
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
        return {(row["host"], row["service"]): row["started"] for row in self.status()["containers"]}

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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Virtual devices, deployed. Everything is removed at the end."""
    lab = Lab(tmp_path_factory.mktemp("e2e"))
    shutil.copytree(REPOSITORY / "inventories" / "virtual", lab.inventory)
    for file in lab.inventory.rglob("*.yml"):
        file.write_text(file.read_text().replace("172.28.1.", SUBNET))
    try:
        lab.run("lab", "up")
        lab.run("up")
        yield lab
    finally:
        subprocess.run(lab.command("lab", "down"), cwd=lab.folder, env=lab.environment(), check=True, timeout=300)
