"""fltestbed experiments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fltestbed.cli._options import Format, OutputFormat
from fltestbed.cli._render import show
from fltestbed.errors import ExperimentError
from fltestbed.paths import experiment_files


def experiments(output: OutputFormat = Format.table) -> None:
    """List the experiments in ./experiments and the built-in ones.

    A file that is not in order is left out, and named at the end.
    """
    rows, problems = [], []
    for name, file in sorted(experiment_files().items()):
        try:
            rows.append(_row(name, file))
        except ExperimentError as error:
            problems.append(error)
    show({"experiments": rows}, output)
    if problems:
        raise ExperimentError("\n".join(error.message for error in problems), problems[0].hint)


def _row(name: str, file: Path) -> Mapping[str, Any]:
    from fltestbed.experiment import load

    wanted = load(file)
    return {
        "experiment": name,
        "model": wanted.model,
        "data": wanted.data.name,
        "source": wanted.data.source,
        "partitioner": wanted.partitioner.name,
        "strategy": wanted.strategy.name,
        "rounds": wanted.rounds,
        "description": wanted.description,
    }
