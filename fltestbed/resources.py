"""What each client's rounds took: the rows of clients.jsonl joined to the clients' logs and to Prometheus' series.

docs/explanation-resources.md says how each figure is found, and how far off it may be.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fltestbed.series import Floats, Series, grown, summed, within

COLUMNS = {
    "run": "string",
    "device": "string",
    "client": "string",
    "round": "Int64",
    "start": "string",
    "end": "string",
    "waiting_seconds": "Float64",
    "download_seconds": "Float64",
    "training_seconds": "Float64",
    "upload_seconds": "Float64",
    "cpu_seconds": "Float64",
    "throttled_seconds": "Float64",
    "memory_mean_bytes": "Float64",
    "memory_peak_bytes": "Float64",
    "received_bytes": "Float64",
    "sent_bytes": "Float64",
    "temperature_celsius": "Float64",
    "energy_joules": "Float64",
    "energy_source": "string",
    "energy_error": "Float64",
    "oom_killed": "boolean",
}
"""The columns of resources.parquet and resources.csv, with pandas' types."""

_MIB = 2**20
_STAMPED = re.compile(r"(\S+)-\d+ +\| (\d{4}-\S+Z) ?(.*)")  # service, time and text of a line of `docker compose logs`
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ROUND = re.compile(r"\[RUN (\d+), ROUND (\d+)\]")


@dataclass(frozen=True)
class Machine:
    """What a kind of machine draws, in W, doing nothing and with all cores busy; `error` as a fraction."""

    arch: str
    idle: float
    busy: float
    error: float


MACHINES = {
    "rpi3": Machine("aarch64", idle=1.9, busy=5.1, error=0.25),
    "rpi4": Machine("aarch64", idle=2.7, busy=6.4, error=0.25),
}
"""By profile. The figures' sources are in docs/explanation-resources.md."""


def join(folder: Path, series: Series | None) -> list[dict[str, Any]]:
    """Return a row of COLUMNS for each row of a run's clients.jsonl. What is not known is None."""
    rows = _read(folder / "clients.jsonl")
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    transfers = {
        client: read_transfers(folder / "logs" / f"client-{client}.log", client, str(run.get("flwr_run_id")))
        for client in {row["client"] for row in rows}
    }
    joined = []
    for row in rows:
        download, upload = transfers[row["client"]].get(row["round"], (None, None))
        wall = _unix(row["end"]) - _unix(row["start"])
        parts = (download, row.get("app_seconds"), upload)
        known = [part for part in parts if part is not None]
        figures: dict[str, Any] = dict.fromkeys(COLUMNS)
        figures |= {key: row[key] for key in ("run", "device", "client", "round", "start", "end")}
        figures |= dict(zip(("download_seconds", "training_seconds", "upload_seconds"), parts, strict=True))
        figures["waiting_seconds"] = max(0.0, wall - sum(known)) if len(known) == len(parts) else None
        figures["memory_peak_bytes"] = row["peak_memory_mb"] * _MIB if row["peak_memory_mb"] else None
        figures["oom_killed"] = None if row["failure"] else False
        if series:
            figures |= _hardware(row, series, rows)
        joined.append(figures)
    return joined


def save(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write resources.parquet and resources.csv."""
    import pandas

    frame = pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    frame.to_parquet(folder / "resources.parquet", index=False)
    frame.to_csv(folder / "resources.csv", index=False, float_format="%.6g")


def read_transfers(log: Path, client: str, flwr_run: str) -> dict[int, tuple[float | None, float | None]]:
    """Return by round how long a client's SuperNode took to get the model, and to hand in the reply, in s.

    Its log tells, by the device's own clock. None is for what the log does not tell.
    """
    begun: dict[str, tuple[int, datetime]] = {}
    took: dict[tuple[str, int], float] = {}
    current: int | None = None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        match = _STAMPED.match(_ESCAPES.sub("", line))
        if not match or match[1] != f"supernode-{client}":
            continue
        text = match[3]
        at = datetime.fromisoformat(f"{match[2][:26].rstrip('Z')}+00:00")
        if head := _ROUND.search(text):
            current = int(head[2]) if head[1] == flwr_run else None
        for way, begins, ends in (
            ("download", "Receiving: ", "Received successfully"),
            ("upload", "Sending: ", "Sent successfully"),
        ):
            if begins in text and current is not None:
                begun[way] = current, at
            elif ends in text and way in begun:
                number, since = begun.pop(way)
                took[way, number] = (at - since).total_seconds()
    return {number: (took.get(("download", number)), took.get(("upload", number))) for _way, number in took}


def _hardware(row: Mapping[str, Any], series: Series, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what Prometheus knows of a client between the start and the end of a row."""
    device, client = row["device"], row["client"]
    start, end = _window(row, series)

    def counted(metric: str, of: str = client) -> float | None:
        return grown(*series.get(metric, device, of), start, end, 3 * series.step)

    def gauged(metric: str, of: str = client) -> Floats:
        return within(*series.get(metric, device, of), start, end)

    oom_killed = _oom_killed(row, series)
    memory, temperature = gauged("client:memory_used:bytes"), gauged("device:temperature:celsius", "")
    peaks = [*memory, *([row["peak_memory_mb"] * _MIB] if row["peak_memory_mb"] else [])]
    if oom_killed:
        peaks += [*gauged("client:memory_max:bytes")]
    energy, source, error = _energy(row, series, rows)
    return {
        "cpu_seconds": counted("client:cpu:seconds_total"),
        "throttled_seconds": counted("client:cpu_throttled:seconds_total"),
        "memory_mean_bytes": float(memory.mean()) if len(memory) else None,
        "memory_peak_bytes": float(max(peaks)) if peaks else None,
        # The SuperNode talks to the server and to its own client, which talks to nobody else.
        "received_bytes": _less(
            counted("supernode:network_received:bytes_total"), counted("client:network_sent:bytes_total")
        ),
        "sent_bytes": _less(
            counted("supernode:network_sent:bytes_total"), counted("client:network_received:bytes_total")
        ),
        "temperature_celsius": float(temperature.max()) if len(temperature) else None,
        "energy_joules": energy,
        "energy_source": source,
        "energy_error": error,
        "oom_killed": oom_killed,
    }


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else max(0.0, whole - part)


def _window(row: Mapping[str, Any], series: Series) -> tuple[float, float]:
    """Return when a row began and ended by Prometheus' clock; the ServerApp's host wrote it by its own."""
    ahead = series.clock_ahead(series.server)
    return _unix(row["start"]) - ahead, _unix(row["end"]) - ahead


def _oom_killed(row: Mapping[str, Any], series: Series) -> bool | None:
    """Return whether the kernel ended the training for want of memory; None where that cannot be known."""
    if not row["failure"]:
        return False
    device, client = row["device"], row["client"]
    start, end = _window(row, series)

    def counted(metric: str, of: str) -> float | None:
        return grown(*series.get(metric, device, of), start, end, 3 * series.step)

    own = counted("client:oom_kills:total", client)
    if own:
        return True
    # Debian's cAdvisor counts no kills: then one of the device's processes was killed, and the client was at its limit.
    killed = counted("device:oom_kills:total", "")
    reached = within(*series.get("client:memory_max:bytes", device, client), start, end)
    limits = series.get("client:memory_limit:bytes", device, client)[1]
    if killed is None or not len(reached) or not len(limits):
        return None if own is None else False
    return bool(killed and reached.max() >= 0.99 * limits[-1])


def _energy(
    row: Mapping[str, Any], series: Series, rows: Sequence[Mapping[str, Any]]
) -> tuple[float | None, str | None, float | None]:
    """Return the energy in J that a client's device drew meanwhile, where the figure is from, and its error.

    Where several clients share a device, a client's part is that of the CPU time that they all used.
    """
    device = row["device"]
    start, end = _window(row, series)
    machine = _machine(device, series)
    used = series.get("device:cpu_used:ratio", device)
    sources: list[tuple[str, tuple[Floats, Floats], float | None]] = [
        ("plug", _counter(series.get("device:power_plug:watts", device)), None),
        ("rapl", series.get("device:energy_rapl:joules_total", device), None),
        ("hwmon", _counter(series.get("device:power_hwmon:watts", device)), None),
    ]
    if machine:
        power = machine.idle + (machine.busy - machine.idle) * np.clip(used[1], 0, 1)
        sources.append(("model", _counter((used[0], power)), machine.error))
    for source, counter, error in sources:
        joules = grown(*counter, start, end, 3 * series.step)
        share = _share(row, series, rows)
        if joules is not None and share is not None:
            return joules * share, source, error
    return None, None, None


def _counter(power: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    return power[0], summed(*power)


def _machine(device: str, series: Series) -> Machine | None:
    """Return the model of a device, if it is what its profile says: a virtual device of another architecture is not."""
    profile, arch = series.machines.get(device, ("", ""))
    machine = MACHINES.get(profile)
    return machine if machine and machine.arch == arch else None


def _share(row: Mapping[str, Any], series: Series, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return a client's part, 0 to 1, of what its device's clients computed; None where that is not known."""
    clients = {other["client"] for other in rows if other["device"] == row["device"]}
    if len(clients) == 1:
        return 1.0
    start, end = _window(row, series)
    used = {
        client: grown(*series.get("client:cpu:seconds_total", row["device"], client), start, end, 3 * series.step)
        for client in clients
    }
    total = sum(seconds or 0.0 for seconds in used.values())
    own = used[row["client"]]
    return own / total if own is not None and total else None


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
