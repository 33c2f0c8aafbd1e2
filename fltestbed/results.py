"""A run's folder as tables. What is not there is empty; what cannot be read is said in `Run.notes`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

ROUNDS = (
    "round",
    "start",
    "end",
    "seconds",
    "clients_selected",
    "clients_ok",
    "clients_failed",
    "train_loss",
    "client_accuracy",
    "server_loss",
    "server_accuracy",
    "bytes",
)
CLIENTS = (
    "device",
    "client",
    "round",
    "start",
    "end",
    "train_seconds",
    "examples",
    "train_loss",
    "loss",
    "accuracy",
    "eval_examples",
    "batch_size",
    "learning_rate",
    "local_epochs",
    "data_fraction",
    "width",
    "threads",
    "peak_memory_mb",
    "app_start",
    "app_seconds",
    "status",
    "failure",
)
RESOURCES = (
    "waiting_seconds",
    "download_seconds",
    "training_seconds",
    "upload_seconds",
    "cpu_seconds",
    "throttled_seconds",
    "memory_mean_bytes",
    "memory_peak_bytes",
    "received_bytes",
    "sent_bytes",
    "temperature_celsius",
    "energy_joules",
    "energy_source",
    "energy_error",
    "oom_killed",
)
EVENTS = ("time", "kind", "device", "client", "text")
CONDITIONS = (
    *("time", "device", "client", "action", "text", "when", "planned", "error_seconds", "took_seconds", "outcome"),
    *("step", "ends"),
)
SERIES = ("time", "metric", "device", "client", "value")
_KEY = ["device", "client", "round"]
_WORDS = (
    *("device", "client", "status", "failure", "energy_source", "kind", "text", "metric"),
    *("action", "when", "outcome"),
)


@dataclass(frozen=True)
class Run:
    """What a run left.

    `rounds` has the columns ROUNDS, `clients` CLIENTS and RESOURCES, `events` EVENTS, `conditions` (the events of the
    timeline) CONDITIONS, `series` SERIES; times are UTC, in `series` Unix seconds. `limits` has a row a client: what
    the inventory asks for (`cpus_asked`, `memory_asked`) and what the kernel enforced (`cpus`, `memory`), in cores and
    bytes.
    """

    name: str
    folder: Path
    record: dict[str, Any]
    lock: dict[str, Any]
    experiment: dict[str, Any]
    rounds: pd.DataFrame
    clients: pd.DataFrame
    series: pd.DataFrame
    events: pd.DataFrame
    conditions: pd.DataFrame
    limits: pd.DataFrame
    notes: Sequence[str]

    @cached_property
    def start(self) -> pd.Timestamp | None:
        """When the first round began, or else the run."""
        times = pd.concat([self.rounds["start"], self.clients["start"]]).dropna()
        return _time(self.record.get("started")) if times.empty else times.min()

    @property
    def seconds(self) -> float | None:
        """From the first round's start to the last one's end; without rounds, by the run's own record."""
        times = pd.concat([self.rounds["end"], self.clients["end"]]).dropna()
        end = _time(self.record.get("updated")) if times.empty else times.max()
        return (end - self.start).total_seconds() if self.start is not None and end is not None else None

    def since_start(self, times: "pd.Series[Any]") -> "pd.Series[Any]":
        """Return times as seconds after `start`."""
        return (
            (times - self.start).dt.total_seconds() if self.start is not None else pd.Series(float("nan"), times.index)
        )


def load(folder: Path) -> Run:
    """Read a run's folder; every file of it may be absent or broken."""
    reader = _Reader(folder)
    lock = reader.mapping("lock.json")
    planned = reader.mapping("experiment.json")
    events = reader.rows("events.jsonl")
    conditions = [row for row in events if row.get("kind") == "timeline"]
    clients = _table(reader.rows("clients.jsonl"), CLIENTS)
    resources = _table(reader.parquet("resources"), (*_KEY, "start", "end", *RESOURCES))
    if not resources.empty:
        times = resources[[*_KEY, "start", "end"]]
        clients = clients.merge(resources.drop(columns=["start", "end"]), how="outer", on=_KEY)
        clients = clients.merge(times, how="left", on=_KEY, suffixes=("", "_there"))
        for column in ("start", "end"):
            clients[column] = clients[column].fillna(clients.pop(f"{column}_there"))
    else:
        clients = clients.reindex(columns=[*CLIENTS, *RESOURCES])
    return Run(
        name=folder.name,
        folder=folder,
        record=reader.mapping("run.json"),
        lock=lock,
        experiment=lock.get("experiment") or planned.get("experiment") or {},
        rounds=_table(reader.rows("rounds.jsonl"), ROUNDS).sort_values("round", ignore_index=True),
        clients=clients.sort_values(["round", "client"], ignore_index=True),
        series=_series(reader.parquet("series")),
        events=_table(events, EVENTS).sort_values("time", ignore_index=True),
        conditions=_table(conditions, CONDITIONS).sort_values("time", ignore_index=True, kind="stable"),
        limits=_limits(lock, planned, clients),
        notes=reader.notes,
    )


class _Reader:
    """Reads the files of a folder, and notes those that it cannot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.notes: list[str] = []

    def mapping(self, name: str) -> dict[str, Any]:
        text = self._text(name)
        try:
            found = json.loads(text) if text else {}
        except json.JSONDecodeError as error:
            self.notes.append(f"{name} is not valid JSON ({error}) and is left out")
            return {}
        return found if isinstance(found, dict) else {}

    def rows(self, name: str) -> list[dict[str, Any]]:
        found = []
        for number, line in enumerate(self._text(name).splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if isinstance(row, dict):
                found.append(row)
            else:
                self.notes.append(f"{name}: line {number} is not a row and is left out")
        return found

    def parquet(self, name: str) -> pd.DataFrame:
        path = self._folder / f"{name}.parquet"
        try:
            return pd.read_parquet(path) if path.exists() else pd.DataFrame()
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            self.notes.append(f"{path.name} cannot be read ({error}) and is left out")
            return pd.DataFrame()

    def _text(self, name: str) -> str:
        path = self._folder / name
        try:
            return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            self.notes.append(f"{name} cannot be read ({error.strerror}) and is left out")
            return ""


def _table(rows: list[dict[str, Any]] | pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return rows with exactly these columns, each of its own kind; a value of another kind is none."""
    table = pd.DataFrame(rows).reindex(columns=list(columns))
    for column in columns:
        if column in ("start", "end", "time", "planned"):
            table[column] = pd.to_datetime(table[column], utc=True, errors="coerce", format="ISO8601")
        elif column == "oom_killed":
            table[column] = table[column].eq(True).fillna(False).astype(bool)
        elif column in _WORDS:
            table[column] = table[column].astype("object").where(table[column].notna(), None)
        else:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def _series(found: pd.DataFrame) -> pd.DataFrame:
    series = found.reindex(columns=list(SERIES))
    for column in ("time", "value"):
        series[column] = pd.to_numeric(series[column], errors="coerce").astype(float)
    return series.dropna(subset=["time", "value"])


def _limits(lock: dict[str, Any], planned: dict[str, Any], clients: pd.DataFrame) -> pd.DataFrame:
    """Return a row a client, from the lock, or without one from the plan and the rows."""
    enforced = {
        container["client"]: container
        for host in lock.get("hosts", {}).values()
        for container in host.get("containers") or []
        if "cpus_asked" in container or "memory_asked" in container
    }
    known = lock.get("clients") or planned.get("clients") or []
    names = [(each["device"], each["client"]) for each in known]
    names += list(clients[["device", "client"]].drop_duplicates().itertuples(index=False, name=None))
    asked = {each["client"]: each for each in known}
    rows = [
        {
            "device": device,
            "client": client,
            "cpus_asked": asked.get(client, {}).get("cpus"),
            "cpus": enforced.get(client, {}).get("cpus"),
            "memory_asked": asked.get(client, {}).get("memory"),
            "memory": enforced.get(client, {}).get("memory"),
        }
        for device, client in dict.fromkeys(names)
    ]
    columns = ("device", "client", "cpus_asked", "cpus", "memory_asked", "memory")
    return _table(rows, columns).sort_values("client", ignore_index=True)


def _time(value: Any) -> pd.Timestamp | None:
    time = pd.to_datetime(value, utc=True, errors="coerce") if value else None
    return None if time is None or pd.isna(time) else time
