"""What happened in a run, in order: its start and end, rounds, failed clients, changed limits, conditions, alerts."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

from fltestbed.series import Series

_LIMITS = {
    "client:cpu_limit:cores": "CPU limit {before:g} → {after:g} cores",
    "client:memory_limit:bytes": "memory limit {before:.0f} → {after:.0f} bytes",
}


def events(folder: Path, series: Series | None) -> list[dict[str, Any]]:
    """Return the events of a run's folder and of its series, by time: time, kind, device, client, text.

    time is ISO 8601 in UTC; kind is start, end, round, fault, limit, condition or alert; device and client may be None.
    """
    found = [*_recorded(folder), *(_watched(series) if series else ())]
    return sorted(found, key=lambda event: (datetime.fromisoformat(event["time"]), event["kind"] == "end"))


def save(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write events.jsonl."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "events.jsonl").write_text("".join(lines), encoding="utf-8")


def _event(time: str, kind: str, text: str, device: str | None = None, client: str | None = None) -> dict[str, Any]:
    return {"time": time, "kind": kind, "device": device, "client": client, "text": text}


def _recorded(folder: Path) -> Iterator[dict[str, Any]]:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if "started" in run:
        yield _event(run["started"], "start", folder.name)
    reason = f": {run['reason']}" if run["reason"] else ""
    yield _event(run["updated"], "end", f"{run['status']}{reason}")
    for row in _read(folder / "rounds.jsonl"):
        counts = f"{row['clients_ok']} clients ok, {row['clients_failed']} failed"
        accuracy = row["server_accuracy"]
        learned = "" if accuracy is None else f", accuracy {accuracy:.4f}"
        yield _event(row["end"], "round", f"round {row['round']} done in {row['seconds']:.1f} s: {counts}{learned}")
    for row in _read(folder / "clients.jsonl"):
        if row["failure"]:
            yield _event(row["end"], "fault", f"round {row['round']}: {row['failure']}", row["device"], row["client"])


def _watched(series: Series) -> Iterator[dict[str, Any]]:
    for key, (times, values) in series.samples.items():
        if key.metric in _LIMITS:
            for at, before, after in zip(times[1:], values, values[1:], strict=False):
                if before != after:
                    text = _LIMITS[key.metric].format(before=before, after=after)
                    yield _event(_iso(at), "limit", text, key.device, key.client)
        elif key.metric.startswith("condition:"):
            kind = key.metric.split(":")[1]
            for at, text in _spells(times, series.step, series.get("device:up:bool", key.device)[0]):
                yield _event(_iso(at), "condition", f"{kind} {text}", key.device, key.client or None)
    for alert in series.alerts:
        yield _event(
            _iso(alert.time), "alert", f"{alert.name} ({alert.severity})", alert.device or None, alert.client or None
        )


def _spells(times: Iterable[float], step: float, looks: Iterable[float]) -> Iterator[tuple[float, str]]:
    """Yield when what was seen at some times began and ended, as its device was looked at all along."""
    seen = list(times)
    for before, at in zip([-inf, *seen], seen, strict=False):
        if at - before > 3 * step:
            yield at, "begins"
    for at, after in zip(seen, [*seen[1:], inf], strict=True):
        if after - at > 3 * step and any(look > at + 2 * step for look in looks):
            yield at + step, "ends"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _read(file: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
