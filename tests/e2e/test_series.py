"""What a run leaves of its devices, and the view of it while it goes, on a terminal and in a pipe."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from datetime import datetime

import pandas
import pytest

from .conftest import DEVICES, Lab, rows

PARTS = ["waiting_seconds", "download_seconds", "training_seconds", "upload_seconds"]


class Terminal:
    """fltestbed on a terminal of its own; what it draws is in `drawn`."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self._mine, theirs = pty.openpty()
        self.resize(30, 120)
        self.process = subprocess.Popen(
            lab.command(*arguments),
            cwd=lab.folder,
            env={**lab.environment(), "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        os.set_blocking(self._mine, False)
        self.drawn = ""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._mine, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Read on until `text` was drawn after what was read before."""
        seen, deadline = len(self.drawn), time.monotonic() + seconds
        while text not in self.drawn[seen:]:
            assert time.monotonic() < deadline and self.process.poll() is None, f"no {text}: {self.drawn[-2000:]}"
            with contextlib.suppress(BlockingIOError):
                self.drawn += os.read(self._mine, 65536).decode(errors="replace")
            time.sleep(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._mine)


@pytest.fixture(scope="module")
def watched(lab: Lab) -> tuple[Lab, str, str]:
    """A finished run, what `watch` said of it in a pipe, and what it drew on a terminal that shrank."""
    training = lab.start("run", "fashion-mnist-cnn", "--set", "rounds=2", "--name", "measured")
    try:
        # In its folder stands the run's plan before its app is submitted: from then on there is a run to watch.
        deadline = time.monotonic() + 300
        while "-measured" not in lab.on("server", "sh", "-c", "ls /opt/fltestbed/e2e/runs", code=None):
            assert time.monotonic() < deadline and training.poll() is None
            time.sleep(1)
        told = lab.start("watch")
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
        said, _ = told.communicate(timeout=900)
        assert told.returncode == 0, said
        output, _ = training.communicate(timeout=900)
        assert training.returncode == 0, output
        assert "samples in series.parquet" in output
    finally:
        training.kill()
    return lab, said, terminal.drawn


def test_the_view_follows_the_run_to_its_end(watched: tuple[Lab, str, str]) -> None:
    lab, said, drawn = watched
    lines = said.splitlines()
    name = lab.latest_run().name
    assert f"{name} is finished" in lines
    assert [line.split()[1] for line in lines if line.startswith("round ")] == ["1/2", "2/2"]
    assert {f"{device} trains" for device in DEVICES} <= set(lines)
    assert name in drawn and "CPU, cores" in drawn and " of 640 " in drawn


def test_nothing_is_left_on_the_hosts(watched: tuple[Lab, str, str]) -> None:
    lab, _, _ = watched
    for host in ("server", *DEVICES):
        deadline = time.monotonic() + 60
        while "latest_run" in (left := lab.on(host, "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")):
            assert time.monotonic() < deadline, left
            time.sleep(1)


def test_each_clients_rounds_are_joined_with_their_hardware(watched: tuple[Lab, str, str]) -> None:
    run = watched[0].latest_run()
    clients = rows(run, "clients.jsonl")
    table = pandas.read_parquet(run / "resources.parquet")
    assert len(table) == len(clients) == 2 * len(DEVICES)
    print(table.to_string())
    wall = [
        (datetime.fromisoformat(row["end"]) - datetime.fromisoformat(row["start"])).total_seconds() for row in clients
    ]
    assert table[PARTS].sum(axis=1).tolist() == pytest.approx(wall, abs=0.5)
    assert (table["training_seconds"] >= [row["train_seconds"] for row in clients]).all()
    model = (run / "model.pt").stat().st_size
    for device in DEVICES:
        mine = table[table["client"] == device]
        assert mine["cpu_seconds"].sum() > 1
        assert (mine["memory_peak_bytes"] >= mine["memory_mean_bytes"]).all()
        for way in ("received_bytes", "sent_bytes"):
            assert 0.9 * 2 * model < mine[way].sum() < 4 * 2 * model
    assert not table["oom_killed"].any()
    assert table["energy_joules"].isna().all(), "nobody measured what this machine draws"
    assert pandas.read_csv(run / "resources.csv").shape == table.shape


def test_the_series_of_every_device_are_kept(watched: tuple[Lab, str, str]) -> None:
    run = watched[0].latest_run()
    samples = pandas.read_parquet(run / "series.parquet")
    there = set(zip(samples["metric"], samples["device"], strict=True))
    for host in ("server", *DEVICES):
        assert {("device:monitoring_cpu_cores", host), ("device:monitoring_memory_bytes", host)} <= there
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and kinds.count("round") == 2 and kinds.count("end") == 1
