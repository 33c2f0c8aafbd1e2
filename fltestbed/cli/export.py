"""fltestbed export."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fltestbed.paths import find_run


class Target(StrEnum):
    """What a run can be exported to."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"


def export(
    run: Annotated[str, typer.Argument(show_default=False)] = "",
    to: Annotated[Target, typer.Option(show_default=False, help="Whose format.")] = ...,  # type: ignore[assignment]
    at: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            show_default=False,
            help="A folder, or MLflow's address; without it, ./tensorboard or ./mlflow.",
        ),
    ] = "",
) -> None:
    """Write a run's figures for TensorBoard or MLflow, with their own library.

    RUN is a run's folder or its name in ./runs; without it, it is the latest one there. Exporting a run again replaces
    what was exported.
    """
    folder = find_run(run)
    from fltestbed import export as exports  # slow, and no other command needs it

    if to is Target.tensorboard:
        print(exports.tensorboard(folder, Path(at or "tensorboard")))
    else:
        print(exports.mlflow(folder, at or "mlflow"))
