"""Folders of runs to make reports of: a real one, kept in tests/data, and figures of hardware that are made up."""

import json
import shutil
from pathlib import Path

import pandas as pd

from fltestbed.results import RESOURCES

REAL = Path(__file__).parent / "data" / "20261122-050054-faults"


def copy(runs: Path, name: str = REAL.name) -> Path:
    """Copy the real run into `runs`; return its folder. pi-4 went offline in its second of three rounds."""
    return Path(shutil.copytree(REAL, runs / name))


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    """Read a file of rows."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def write_rows(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    """Write a file of rows."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def add_hardware(folder: Path) -> None:
    """Add made-up resources.parquet, series.parquet and events.jsonl, in the types in which a run leaves them."""
    clients = rows(folder, "clients.jsonl")
    figures = []
    for number, row in enumerate(clients):
        known = {key: row[key] for key in ("run", "device", "client", "round", "start", "end")}
        if row["status"] == "ok":
            known |= {"waiting_seconds": 2.0, "download_seconds": 0.5, "training_seconds": 7.0, "upload_seconds": 0.4}
            known |= {"cpu_seconds": 6.0 + number, "throttled_seconds": 1.5, "memory_mean_bytes": 3e8}
            known |= {"memory_peak_bytes": 4e8, "received_bytes": 5e5, "sent_bytes": 4.5e5, "temperature_celsius": 48.5}
            known |= {"energy_joules": 30.0, "energy_source": "model", "energy_error": 0.25}
        figures.append(known | {"oom_killed": row["status"] == "failed"})
    frame = pd.DataFrame(figures, columns=["run", "device", "client", "round", "start", "end", *RESOURCES])
    kinds = dict.fromkeys(frame.columns, "Float64") | dict.fromkeys(
        ("run", "device", "client", "start", "end", "energy_source"), "string"
    )
    frame.astype(kinds | {"round": "Int64", "oom_killed": "boolean"}).to_parquet(folder / "resources.parquet")

    begin = pd.Timestamp(str(clients[0]["start"])).timestamp()
    samples = [
        (begin + second, metric, device, device if metric.startswith("client:") else None, value + second % 7 / 100)
        for second in range(0, 60, 5)
        for device in ("laptop", "pi-3", "pi-4")
        for metric, value in (
            ("client:cpu_used:cores", 0.4),
            ("client:memory_used:bytes", 3e8),
            ("device:cpu_used:ratio", 0.3),
            ("device:temperature:celsius", 47.0),
            ("device:monitoring_cpu_cores", 0.005),
            ("device:monitoring_memory_bytes", 2.2e7),
        )
    ]
    columns = ["time", "metric", "device", "client", "value"]
    pd.DataFrame(samples, columns=columns).to_parquet(folder / "series.parquet")
    event = {
        "time": clients[3]["end"],
        "kind": "fault",
        "device": "pi-4",
        "client": "pi-4",
        "text": "killed: no memory",
    }
    write_rows(folder, "events.jsonl", [event])
