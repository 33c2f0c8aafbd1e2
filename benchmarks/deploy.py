"""How long `up` takes, and what it costs: a first one, one with nothing to do, one with one changed client.

Of the smallest testbed also a run of one round, as it is and after a change of the app.

Beside it, in the same run on the same devices, the same state kept by plain Ansible tasks (benchmarks/plain.yml), and
the floor: `ssh DEVICE true` on all devices at once.

    python benchmarks/deploy.py [--devices 2,4,8,16] [--repeat 3]

The devices are virtual ones on this machine's Docker engine, and share its cores with the controller. They are removed
at the end.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "plugins" / "module_utils"))
import testbed_docker  # noqa: E402 an Ansible module_utils file, which is no package

BIN = Path(sys.executable).parent
NAME = "benchmark"
SUBNET = "172.29.9."


@dataclass
class Cost:
    """What one command took: seconds, CPU seconds of controller and of one device, bytes that a device received."""

    seconds: float
    controller_cpu: float
    device_cpu: float
    device_bytes: float


class Bench:
    """A testbed of light virtual devices, in a working directory of its own."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder = folder
        self.inventory = folder / "inventories" / NAME
        self.environment = os.environ | {"PWD": str(folder), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        shutil.copytree(REPOSITORY / "inventories" / "virtual", self.inventory)
        for file in self.inventory.rglob("*.yml"):
            text = file.read_text().replace("172.28.1.", SUBNET).replace(".fltestbed/virtual", f".fltestbed/{NAME}")
            file.write_text(text)
        self.write_hosts(devices)

    def write_hosts(self, devices: int, first_cpus: float = 0.2) -> None:
        """Write an inventory of so many devices; `first_cpus` are the cores of the first one's client."""
        light = "virtual_device_cpus: 2, virtual_device_memory: 1536m"
        lines = [
            "testbed:",
            "  children:",
            f"    superlink: {{hosts: {{server: {{ansible_host: {SUBNET}10, {light}}}}}}}",
            "    supernodes:",
            "      hosts:",
        ]
        for number in range(1, devices + 1):
            client = f"{{cpus: {first_cpus if number == 1 else 0.2}, memory: 512m}}"
            address = f"ansible_host: {SUBNET}{19 + number}"
            lines.append(f"        device-{number}: {{{address}, {light}, testbed_clients: [{client}]}}")
        self.addresses = {"server": f"{SUBNET}10"}
        self.addresses |= {f"device-{number}": f"{SUBNET}{19 + number}" for number in range(1, devices + 1)}
        (self.inventory / "hosts.yml").write_text("\n".join(lines) + "\n")

    def run(self, *command: str) -> None:
        """Run a command in the working directory. Raises CalledProcessError with what it said."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
            done.check_returncode()

    def fltestbed(self, *arguments: str) -> None:
        self.run(str(BIN / "fltestbed"), *arguments, "-i", NAME)

    def up(self) -> None:
        self.fltestbed("up")

    def train(self) -> None:
        """Train for a round with the app in the working directory."""
        app = self.folder / "app"
        if not app.exists():
            shutil.copytree(REPOSITORY / "fl_app", app)
        self.fltestbed("run", "fashion-mnist-cnn", "--app", str(app), "--set", "rounds=1")

    def change_app(self) -> None:
        with (self.folder / "app/testbed_app/client.py").open("a") as file:
            file.write("# changed\n")

    def plain(self) -> None:
        """Keep the same state by plain tasks."""
        playbook = str(REPOSITORY / "benchmarks" / "plain.yml")
        config = {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")}
        before, self.environment = self.environment, self.environment | config
        try:
            self.run(
                str(BIN / "ansible-playbook"), "-i", str(self.inventory), playbook,
                "-e", f"project=fltestbed-{NAME}", "-e", f"root=/opt/fltestbed/{NAME}",
            )  # fmt: skip
        finally:
            self.environment = before

    def floor(self) -> None:
        """Open a connection to every host at once, and run `true`."""
        ssh = self.folder / ".fltestbed" / NAME / "ssh"
        options = [
            "-i",
            str(ssh / "id_ed25519"),
            "-o",
            f"UserKnownHostsFile={ssh / 'known_hosts'}",
            "-o",
            "IdentitiesOnly=yes",
        ]
        with ThreadPoolExecutor(len(self.addresses)) as pool:
            list(pool.map(lambda address: self.run("ssh", *options, f"pi@{address}", "true"), self.addresses.values()))

    def measure(self, work: Callable[[], None]) -> Cost:
        """Do some work on all hosts, with connections opened anew; what the devices do anyway is taken off."""
        self.close_connections()
        before, began = self.used(), time.monotonic()
        time.sleep(5)
        quiet = self.used()
        idle = (quiet - before) / (time.monotonic() - began)
        own, began = _children(), time.monotonic()
        work()
        seconds = time.monotonic() - began
        cpu, received = np.maximum(self.used() - quiet - idle * seconds, 0) / len(self.addresses)
        return Cost(seconds, _children() - own, cpu, received)

    def close_connections(self) -> None:
        """End the SSH connections that Ansible keeps open to the devices."""
        for line in _lines("pgrep", "-af", r"ssh: .*\[mux\]"):
            pid, _, title = line.partition(" ")
            if str(Path("~/.ansible/cp").expanduser()) in title:
                os.kill(int(pid), 15)

    def used(self) -> NDArray[np.float64]:
        """Return what the devices used so far, all that runs in them included: CPU seconds and bytes received."""
        used = np.zeros(2)
        for name in self.addresses:
            stats = testbed_docker.get(f"/containers/{NAME}-{name}/stats?stream=false&one-shot=true")
            received = sum(network["rx_bytes"] for network in stats["networks"].values())
            used += (stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, received)
        return used


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def median(costs: Sequence[Cost]) -> Cost:
    """Return the costs' medians, each figure by itself."""
    return Cost(*(statistics.median(values) for values in zip(*(vars(cost).values() for cost in costs), strict=True)))


def row(devices: int, what: str, cost: Cost) -> str:
    """Return a line of the table."""
    return (
        f"| {devices} | {what} | {cost.seconds:.1f} | {cost.controller_cpu:.1f} | {cost.device_cpu:.2f} | "
        f"{cost.device_bytes / 1000:.0f} |"
    )


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="2,4,8,16", help="how many devices, besides the server")
    parser.add_argument("--repeat", type=int, default=3, help="how often each command with nothing to do is run")
    arguments = parser.parse_args()
    sizes = sorted(int(size) for size in arguments.devices.split(","))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), sizes[-1])
        try:
            bench.fltestbed("lab", "up")
            print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}; medians of {arguments.repeat}")
            print("| devices | what | s | controller CPU s | device CPU s | device kB |\n|---|---|---|---|---|---|")
            measure(bench, sizes, arguments.repeat)
        finally:
            bench.fltestbed("lab", "down")


def measure(bench: Bench, sizes: Sequence[int], repeat: int) -> None:
    """Print the table's lines, size by size: a larger testbed is the smaller one and more devices."""
    for size in sizes:
        bench.write_hosts(size)
        print(row(size, "first `up` of these, or of those that came", bench.measure(bench.up)), flush=True)
        for what, work in (
            ("`up`, nothing to do", bench.up),
            ("plain tasks, nothing to do", bench.plain),
            ("ssh true", bench.floor),
        ):
            work()  # what the one before left to do
            print(row(size, what, median([bench.measure(work) for _ in range(repeat)])), flush=True)
        bench.up()
        bench.write_hosts(size, first_cpus=0.3)
        print(row(size, "`up`, one client changed", bench.measure(bench.up)), flush=True)
        bench.write_hosts(size)
        bench.up()
        if size == sizes[0]:
            bench.train()
            print(row(size, "`run` of one round", bench.measure(bench.train)), flush=True)
            bench.change_app()
            print(row(size, "the same after a change of the app", bench.measure(bench.train)), flush=True)


if __name__ == "__main__":
    main()
