"""fltestbed report."""

from typing import Annotated

import typer

from fltestbed.paths import find_run


def report(run: Annotated[str, typer.Argument(show_default=False)] = "") -> None:
    """Write a run's report: one HTML file that needs no network.

    RUN is a run's folder or its name in ./runs; without it, it is the latest one there. Every chart goes beside the
    report as PNG, every table as CSV.
    """
    folder = find_run(run)
    from fltestbed.report import write  # slow, and no other command needs it

    print(write(folder))
