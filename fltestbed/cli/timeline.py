"""fltestbed timeline."""

from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, Format, Inventory, OutputFormat
from fltestbed.cli._render import show
from fltestbed.cli.run import absolute
from fltestbed.errors import ExperimentError
from fltestbed.inventory import load
from fltestbed.paths import content_dir, find_experiment, find_inventory


def timeline(
    experiment: Annotated[str, typer.Argument(show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of the experiment, as for run. May be repeated."),
    ] = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    output: OutputFormat = Format.table,
) -> None:
    """Say what an experiment's timeline would do, and when; no host is asked.

    What is random is drawn: the same seed gives the same steps.
    """
    from fltestbed.plan import resolve
    from fltestbed.timeline import schedule

    settings = [absolute(setting) for setting in settings or []]
    testbed = load(find_inventory(inventory))
    file = find_experiment(experiment)
    steps = schedule.of(resolve(file, settings, app=None, content_dir=content_dir()), testbed, file, settings)
    if not steps:
        raise ExperimentError(f"{file}: has no timeline", "docs/reference-timeline.md says how to write one")
    rows = [
        {
            "step": step.number,
            "when": str(step.when),
            "device": ", ".join(step.target.clients) or step.target.device,
            "action": schedule.words(step.action),
            "ends": step.ends,
            "of": step.of,
        }
        for step in steps
    ]
    show({"timeline": rows}, output)
