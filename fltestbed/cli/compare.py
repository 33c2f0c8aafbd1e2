"""fltestbed compare."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fltestbed.cli._options import Format, OutputFormat
from fltestbed.cli._render import show
from fltestbed.paths import find_run


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", show_default=False)],
    accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default=False,
            help="The accuracy to time; without it, the highest that all the runs reach.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="Write it as an HTML page with charts, too."
        ),
    ] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Put runs side by side: what they reached, cost, and differed in.

    RUN is a run's folder or its name in ./runs.
    """
    folders = [find_run(name) for name in runs]
    from fltestbed import compare as comparison  # slow, and no other command needs it

    found = comparison.read(folders)
    wanted = comparison.reached_by_all(found) if accuracy is None else accuracy
    parts = {"runs": comparison.measures(found, wanted), "repeats": comparison.repeats(found, wanted)}
    show({**parts, "differences": comparison.differences(found)}, output)
    if file:
        comparison.write(found, wanted, file)
        print(f"page: {file}", file=sys.stderr)
