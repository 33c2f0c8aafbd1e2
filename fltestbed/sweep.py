"""Many runs of one experiment: which there are to be, and which of them are done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fltestbed.errors import ExperimentError
from fltestbed.experiment import Experiment
from fltestbed.inventory import Testbed


@dataclass(frozen=True)
class Point:
    """One run. `values` are what it takes of the sweep, with the seed if there are repeats."""

    values: Mapping[str, Any]

    @property
    def settings(self) -> list[str]:
        """Return the values as settings of an experiment that has nothing to sweep over any more."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()] + ["sweep=null", "repeats=1"]

    @property
    def columns(self) -> dict[str, Any]:
        """Return the values as a table shows them."""
        return {
            key: value if isinstance(value, int | float | str) else json.dumps(value)
            for key, value in self.values.items()
        }


def points(experiment: Experiment, settings: Sequence[str] = ()) -> list[Point]:
    """Return the runs of an experiment: the last key of the sweep changes fastest, and the seed faster still.

    Raises ExperimentError for one of the settings for all of them that the sweep would undo.
    """
    axes = dict(experiment.sweep or {})
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if axis := next((axis for axis in axes if f"{key}.".startswith(f"{axis}.")), None):
            raise ExperimentError(
                f"setting {setting!r}: each run has its {axis} of the sweep, which would undo it",
                f"write it into the values of {axis} in the sweep, or take {axis} out of that",
            )
    if experiment.repeats > 1:
        axes["seed"] = [experiment.seed + number for number in range(experiment.repeats)]
    return [Point(dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def finished(prepared: Mapping[str, Any], testbed: Testbed, runs: Path) -> Path | None:
    """Return the folder of the latest run that finished of what `plan.prepare` returned, on this testbed as it is now.

    Data that lie on the devices are taken for the same where their paths are.
    """
    test_set = prepared["test_set"] and prepared["test_set"]["sha256"]
    lock = {**prepared, "test_set": test_set, "testbed": testbed.name, "clients": testbed.clients}
    wanted = json.loads(json.dumps(_identity(lock)))
    for folder in sorted(runs.iterdir(), reverse=True) if runs.is_dir() else ():
        try:
            status = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
            had = _identity(json.loads((folder / "lock.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a run, or one that left nothing that can be read
        if status == "finished" and had == wanted:
            return folder
    return None


def _identity(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of lock.json has to be the same for one run to stand for another."""
    on_devices = lock["experiment"]["data"]["source"] == "device"
    of_part = ("device", "client", "settings", *(() if on_devices else ("sha256",)))
    of_client = ("device", "client", "cpus", "memory", *(("data",) if on_devices else ()))
    return {
        **{key: lock[key] for key in ("testbed", "experiment", "run_config", "partition_set", "test_set")},
        "app": lock["app"]["sha256"],
        "partitions": [{key: part[key] for key in of_part} for part in lock["partitions"]],
        "clients": [{key: client[key] for key in of_client} for client in lock["clients"]],
    }
