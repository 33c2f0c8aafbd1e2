"""fltestbed report."""

from typing import Annotated

import typer

from fltestbed.paths import find_run


def report(
    run: Annotated[
        str,
        typer.Argument(show_default=False, help="A run's folder, or its name in ./runs; the latest there if none."),
    ] = "",
) -> None:
    """Write a run's report: one HTML file that needs no network, and every chart and table as PNG and CSV."""
    folder = find_run(run)
    from fltestbed.report import write  # slow, and no other command needs it

    print(write(folder))
