"""A run's results for TensorBoard and for MLflow, through their own libraries.

From what a run left, and not while it goes on: the rows come to the controller at its end, and a run that failed, or is
a year old, is exported as well. While it goes on, `fltestbed watch` and Grafana show it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd

from fltestbed import results
from fltestbed.errors import ResultsError

_FILES = ("lock.json", "run.json", "rounds.jsonl", "clients.jsonl", "resources.csv", "report/report.html")
_BATCH = 1000  # figures that MLflow takes at once
_RUN_TAG = "fltestbed.run"


class Figure(NamedTuple):
    """One number of a round, `time` in Unix seconds."""

    name: str
    value: float
    round: int
    time: float


def figures(run: results.Run) -> Iterator[Figure]:
    """Yield every number of the run's rounds as `round/<column>`, and of its clients as `client/<client>/<column>`."""
    tables = {"round": run.rounds} | {f"client/{name}": rows for name, rows in run.clients.groupby("client")}
    for prefix, table in tables.items():
        known = table.dropna(subset=["round", "end"])
        numbers = known.select_dtypes("number").drop(columns="round")
        for column in numbers:
            for number, end, value in zip(known["round"], known["end"], numbers[column], strict=True):
                if pd.notna(value):
                    yield Figure(f"{prefix}/{column}", float(value), int(number), end.timestamp())


def tensorboard(folder: Path, at: Path) -> Path:
    """Write a run's figures for TensorBoard into a folder of its name below `at`, and return that.

    What an earlier export wrote there is replaced. Raises ResultsError without TensorBoard, and for a run without
    rounds.
    """
    writers = _library("tensorboard.summary", "tensorboard")
    found = _figures(results.load(folder))
    place = at / folder.name
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    writer = writers.Writer(str(place))
    for figure in found:
        writer.add_scalar(figure.name, figure.value, figure.round, wall_time=figure.time)
    writer.close()
    return place


def mlflow(folder: Path, at: str) -> str:
    """Write a run into the MLflow store `at`, an address or a folder for a database and files; return what it is there.

    It goes to the MLflow experiment with the name of its own: the settings as parameters, the figures as metrics, and
    the files. A run of the same name that an earlier export wrote is deleted. Raises ResultsError without MLflow, for a
    run without rounds, and where the store cannot be reached or does not take it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its 7 take minutes to say that nobody answers
    library = _library("mlflow", "mlflow")
    run = results.load(folder)
    found = _figures(run)
    try:
        return _without_password(_store(library, run, found, at))
    except (library.exceptions.MlflowException, OSError) as error:
        raise ResultsError(
            f"MLflow's store {_without_password(at)} does not take the run: {_without_password(str(error))}",
            "check the address, and that a user and a password are in it where MLflow asks for them; or give a folder",
        ) from error


def _store(library: ModuleType, run: results.Run, found: Sequence[Figure], at: str) -> str:
    entities = _library("mlflow.entities", "mlflow")
    uri, files = at, None
    if "://" not in at:
        place = Path(at).absolute()
        place.mkdir(parents=True, exist_ok=True)
        uri, files = f"sqlite:///{place / 'mlflow.db'}", (place / "files").as_uri()
    client = library.MlflowClient(tracking_uri=uri)
    name = str(run.experiment.get("name") or run.lock.get("app", {}).get("name") or run.name)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=files)
    for earlier in client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{run.name}'"):
        client.delete_run(earlier.info.run_id)
    tags = {_RUN_TAG: run.name, "fltestbed.testbed": str(run.lock.get("testbed", ""))}
    made: str = client.create_run(experiment, int(found[0].time * 1000), tags, run.name).info.run_id
    settings = _flat(run.experiment or run.lock.get("run_config", {}))
    client.log_batch(made, params=[entities.Param(key, str(value)) for key, value in settings])
    metrics = [entities.Metric(each.name, each.value, int(each.time * 1000), each.round) for each in found]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(made, metrics=metrics[start : start + _BATCH])
    for file in _FILES:
        if (run.folder / file).is_file():
            client.log_artifact(made, str(run.folder / file))
    status = {"finished": "FINISHED", "stopped": "KILLED"}.get(run.record.get("status", ""), "FAILED")
    client.set_terminated(made, status, int(found[-1].time * 1000))
    return f"run {made} in {uri}"


def _without_password(text: str) -> str:
    """Return a text whose addresses have no user and no password."""
    return re.sub(r"://[^/\s]*@", "://", text)


def _figures(run: results.Run) -> list[Figure]:
    found = sorted(figures(run), key=lambda figure: figure.time)
    if not found:
        raise ResultsError(f"{run.folder} has no rounds to export", "see its run.json and logs for what became of it")
    return found


def _library(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ResultsError(
            f"to export to {extra} takes its own library, and it is not here: {error}",
            f"install it beside fltestbed: pip install 'fltestbed[{extra}]'",
        ) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
