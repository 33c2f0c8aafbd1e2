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

from fltestbed.remote import COLOURS
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
_SAID = {
    "receiving": "Receiving: ",
    "received": "Received successfully",
    "sending": "Sending: ",
    "sent": "Sent successfully",
}
"""What SuperNode says at each of a message's moments."""
_ROUND = re.compile(r"\[RUN (\d+)(?:, ROUND (\d+))?\]")


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


@dataclass
class Moments:
    """When what happened to a message, in Unix s by the device's own clock; None for what its log does not tell."""

    receiving: float | None = None
    received: float | None = None
    sending: float | None = None
    sent: float | None = None

    @property
    def download(self) -> float | None:
        return _less(self.received, self.receiving)

    @property
    def upload(self) -> float | None:
        return _less(self.sent, self.sending)


@dataclass(frozen=True)
class _Run:
    rows: Sequence[Mapping[str, Any]]
    moments: Mapping[str, Mapping[int, Moments]]
    series: Series


def join(folder: Path, series: Series | None) -> list[dict[str, Any]]:
    """Return a row of COLUMNS for each row of a run's clients.jsonl. What is not known is None."""
    rows = _read(folder / "clients.jsonl")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    moments = {
        client: read_moments(folder / "logs" / f"client-{client}.log", client, str(record.get("flwr_run_id")))
        for client in {row["client"] for row in rows}
    }
    run = _Run(rows, moments, series) if series else None
    joined = []
    for row in rows:
        figures: dict[str, Any] = dict.fromkeys(COLUMNS)
        figures |= {key: row[key] for key in ("run", "device", "client", "round", "start", "end")}
        figures |= _times(row, moments[row["client"]].get(row["round"], Moments()))
        figures["memory_peak_bytes"] = row["peak_memory_mb"] * _MIB if row["peak_memory_mb"] else None
        figures["oom_killed"] = None if row["failure"] else False
        if run:
            figures |= _hardware(row, run)
        joined.append(figures)
    return joined


def _times(row: Mapping[str, Any], moments: Moments) -> dict[str, float | None]:
    """Return the parts of a row's time."""
    start, training = row.get("app_start"), None
    if start is not None and moments.received is not None:
        training = row["app_seconds"] - max(0.0, moments.received - start)  # it may start while the model comes in
    parts = {
        "download_seconds": moments.download,
        "training_seconds": training,
        "upload_seconds": moments.upload,
    }
    known = [part for part in parts.values() if part is not None]
    wall = _unix(row["end"]) - _unix(row["start"])
    return parts | {"waiting_seconds": max(0.0, wall - sum(known)) if len(known) == len(parts) else None}


def save(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write resources.parquet and resources.csv."""
    import pandas

    frame = pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    frame.to_parquet(folder / "resources.parquet", index=False)
    frame.to_csv(folder / "resources.csv", index=False, float_format="%.6g")


def read_moments(log: Path, client: str, flwr_run: str) -> dict[int, Moments]:
    """Return by round when its message came and went, as the log of a client and its SuperNode tells."""
    found: dict[int, Moments] = {}
    current: int | None = None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        match = _STAMPED.match(COLOURS.sub("", line))
        if not match or match[1] != f"supernode-{client}":
            continue
        if head := _ROUND.search(match[3]):
            current = int(head[2]) if head[1] == flwr_run and head[2] else None
        for moment, said in _SAID.items():
            if said in match[3] and current is not None:
                at = datetime.fromisoformat(f"{match[2][:26].rstrip('Z')}+00:00").timestamp()
                setattr(found.setdefault(current, Moments()), moment, at)
    return found


def _hardware(row: Mapping[str, Any], run: _Run) -> dict[str, Any]:
    """Return what Prometheus knows of a client between the start and the end of a row."""
    device, client, series = row["device"], row["client"], run.series
    start, end = _window(row, series)

    def spent(metric: str, times: Sequence[tuple[float | None, float | None]]) -> float | None:
        """Return the growth of a counter that grows within times by the device's clock, and hardly else."""
        ahead = series.clock_ahead(device)
        busy = [(begun - ahead, ended - ahead) for begun, ended in times if begun is not None and ended is not None]
        return grown(*series.get(metric, device, client), start, end, 3 * series.step, busy)

    def gauged(metric: str, of: str = client) -> Floats:
        return within(*series.get(metric, device, of), start, end)

    moments = run.moments[client].values()
    computing = [
        (other["app_start"], other["app_start"] + other["app_seconds"])
        for other in run.rows
        if other["client"] == client and other.get("app_start") is not None
    ]
    oom_killed = _oom_killed(row, series)
    memory, temperature = gauged("client:memory_used:bytes"), gauged("device:temperature:celsius", "")
    peaks = [*memory, *([row["peak_memory_mb"] * _MIB] if row["peak_memory_mb"] else [])]
    if oom_killed:
        peaks += [*gauged("client:memory_max:bytes")]
    energy, source, error = _energy(row, run)
    return {
        "cpu_seconds": spent("client:cpu:seconds_total", computing),
        "throttled_seconds": spent("client:cpu_throttled:seconds_total", computing),
        "memory_mean_bytes": float(memory.mean()) if len(memory) else None,
        "memory_peak_bytes": float(max(peaks)) if peaks else None,
        "received_bytes": spent("client:network_received:bytes_total", [(m.receiving, m.received) for m in moments]),
        "sent_bytes": spent("client:network_sent:bytes_total", [(m.sending, m.sent) for m in moments]),
        "temperature_celsius": float(temperature.max()) if len(temperature) else None,
        "energy_joules": energy,
        "energy_source": source,
        "energy_error": error,
        "oom_killed": oom_killed,
    }


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part


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


def _energy(row: Mapping[str, Any], run: _Run) -> tuple[float | None, str | None, float | None]:
    """Return the energy in J that a client's device drew meanwhile, where the figure is from, and its error.

    Where several clients share a device, a client's part is that of the CPU time that they all used.
    """
    device, series = row["device"], run.series
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
        share = _share(row, run)
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


def _share(row: Mapping[str, Any], run: _Run) -> float | None:
    """Return a client's part, 0 to 1, of what its device's clients computed; None where that is not known."""
    series = run.series
    clients = {other["client"] for other in run.rows if other["device"] == row["device"]}
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
