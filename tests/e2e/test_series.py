"""What a run leaves of its devices, and the view of it while it goes, on a terminal and in a pipe."""

import json
from datetime import datetime

import pandas
import pytest

from .conftest import Trained
from .lab import DEVICES, Lab, rows, wait_for

PARTS = ["waiting_seconds", "download_seconds", "training_seconds", "upload_seconds"]


def test_the_view_follows_the_run_to_its_end(trained: Trained) -> None:
    lines = trained.told.splitlines()
    name = trained.folder.name
    assert f"{name} is finished" in lines
    assert [line.split()[1] for line in lines if line.startswith("round ")] == ["1/3", "2/3", "3/3"]
    assert {f"{device} trains" for device in DEVICES} <= set(lines)
    assert name in trained.drawn and "CPU, cores" in trained.drawn and " of 640 " in trained.drawn
    assert "samples in series.parquet" in trained.progress


@pytest.mark.usefixtures("trained")
def test_nothing_is_left_on_the_hosts(lab: Lab) -> None:
    for host in ("server", *DEVICES):
        processes = ["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"]
        wait_for("the end of what looked", lambda: "latest_run" not in lab.on(host, *processes), 60)  # noqa: B023


def test_each_clients_rounds_are_joined_with_their_hardware(trained: Trained) -> None:
    run = trained.folder
    clients = rows(run, "clients.jsonl")
    table = pandas.read_parquet(run / "resources.parquet")
    assert len(table) == len(clients) == 3 * len(DEVICES)
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
            assert 0.9 * 3 * model < mine[way].sum() < 4 * 3 * model
    assert not table["oom_killed"].any()
    assert table["energy_joules"].isna().all(), "nobody measured what this machine draws"
    assert pandas.read_csv(run / "resources.csv").shape == table.shape


def test_the_series_of_every_device_are_kept(trained: Trained) -> None:
    run = trained.folder
    samples = pandas.read_parquet(run / "series.parquet")
    there = set(zip(samples["metric"], samples["device"], strict=True))
    for host in ("server", *DEVICES):
        assert {("device:monitoring_cpu_cores", host), ("device:monitoring_memory_bytes", host)} <= there
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and kinds.count("round") == 3 and kinds.count("end") == 1
