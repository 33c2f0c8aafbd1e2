"""What the tests of this folder share: a testbed of virtual devices, made once, and one run that is watched."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_dataset import write_npz

from .lab import DEVICES, OWN_DATA, REPOSITORY, SUBNET, Lab, wait_for
from .prometheus import Prometheus, queries_with_data
from .terminal import Terminal


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Virtual devices, deployed. Everything is removed at the end."""
    lab = Lab(tmp_path_factory.mktemp("e2e"))
    shutil.copytree(REPOSITORY / "inventories" / "virtual", lab.inventory)
    for file in lab.inventory.rglob("*.yml"):
        text = file.read_text().replace("172.28.1.", SUBNET)
        file.write_text(text.replace("- {cpus:", f"- {{data: {OWN_DATA}, cpus:"))
    try:
        lab.run("lab", "up")
        for number, device in enumerate(DEVICES):
            write_npz(lab.folder / "bars.npz", seed=number)
            command = ["docker", "cp", str(lab.folder / "bars.npz"), f"{lab.name}-{device}:{OWN_DATA}"]
            subprocess.run(command, check=True, timeout=60, capture_output=True)
        lab.run("up")
        yield lab
    finally:
        subprocess.run(lab.command("lab", "down"), cwd=lab.folder, env=lab.environment(), check=True, timeout=300)


@pytest.fixture(scope="session")
def prometheus(lab: Lab) -> Prometheus:
    return Prometheus(lab)


@dataclass(frozen=True)
class Trained:
    """A finished run, and what was seen while it went."""

    folder: Path
    result: dict[str, Any]  # what `run --format json` printed
    progress: str
    told: str  # by `watch` in a pipe
    drawn: str  # by `watch` on a terminal that shrank
    without_data: list[str]  # the dashboards' queries that had no data at any time


@pytest.fixture(scope="session")
def trained(lab: Lab, prometheus: Prometheus) -> Trained:
    """Train for three rounds, and watch it in every way there is."""
    training = subprocess.Popen(
        lab.command("run", "fashion-mnist-cnn", "--set", "rounds=3", "--name", "watched", "--format", "json"),
        cwd=lab.folder,
        env=lab.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # In its folder stands the run's plan before its app is submitted: from then on there is a run to watch.
        wait_for(
            "the run's folder",
            lambda: (
                "-watched" in lab.on("server", "sh", "-c", "ls /opt/fltestbed/e2e/runs", code=None)
                or training.poll() is not None
            ),
        )
        following = lab.start("watch")
        terminal = Terminal(lab, "watch", "--interval", "1")
        try:
            terminal.wait_for("trains")
            terminal.resize(6, 60)  # too small for three clients
            terminal.wait_for("more: ")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(30) == 0
            assert terminal.process.stderr and "the run goes on" in terminal.process.stderr.read()
            assert training.poll() is None
        finally:
            terminal.close()

        missing = queries_with_data()

        def nothing_missing() -> bool:
            answers = prometheus.query(*missing.values())
            for where, answer in list(zip(missing, answers, strict=True)):
                if answer:
                    del missing[where]
            return not missing or training.poll() is not None

        wait_for("data for every query, or the run's end", nothing_missing, 900)
        output, progress = training.communicate(timeout=900)
        assert training.returncode == 0, progress
        told, _ = following.communicate(timeout=300)
        assert following.returncode == 0, told
    finally:
        training.kill()
    return Trained(lab.latest_run(), json.loads(output), progress, told, terminal.drawn, list(missing))
