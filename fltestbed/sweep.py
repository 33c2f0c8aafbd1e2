"""Many runs of one experiment: which there are to be, and which of them are done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fltestbed.experiment import Experiment


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


def points(experiment: Experiment) -> list[Point]:
    """Return the runs of an experiment: the last key of the sweep changes fastest, and the seed faster still."""
    axes = dict(experiment.sweep or {})
    if experiment.repeats > 1:
        axes["seed"] = [experiment.seed + number for number in range(experiment.repeats)]
    return [Point(dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def finished(experiment: Experiment, clients: Sequence[Mapping[str, Any]], runs: Path) -> Path | None:
    """Return the folder of the latest run of this experiment with these clients that finished, if there is any."""
    wanted = json.loads(json.dumps(experiment.model_dump()))
    names = [[client["device"], client["client"]] for client in clients]
    for folder in sorted(runs.iterdir(), reverse=True) if runs.is_dir() else ():
        try:
            plan = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
            status = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
            had = [[client["device"], client["client"]] for client in plan["clients"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a run, or one that left nothing that can be read
        if status == "finished" and plan["experiment"] == wanted and had == names:
            return folder
    return None
