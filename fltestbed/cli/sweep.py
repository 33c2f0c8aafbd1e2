"""fltestbed sweep."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Format, Inventory, OutputFormat, Verbose
from fltestbed.cli._render import explain, show
from fltestbed.cli._verbs import Options, alone, ask_password
from fltestbed.cli.run import absolute, train
from fltestbed.errors import RunFailed
from fltestbed.inventory import load
from fltestbed.paths import content_dir, find_experiment, find_inventory, runs_dir


def sweep(
    experiment: Annotated[str, typer.Argument(show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value for all the runs, as in rounds=2. May be repeated."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, help="Write the comparison as an HTML page, too."
        ),
    ] = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Run every combination of an experiment's `sweep`, and compare the runs.

    What is finished already is not run again. A run that fails does not keep the others from running.
    """
    from fltestbed import compare as comparison
    from fltestbed import rules
    from fltestbed.experiment import load as read
    from fltestbed.experiment import split
    from fltestbed.plan import resolve
    from fltestbed.sweep import finished, points
    from fltestbed.timeline import schedule

    given = [absolute(setting) for setting in settings or []]
    testbed = load(find_inventory(inventory))
    found = find_experiment(experiment)
    todo = []
    for point in points(read(found, split(given)[0])):
        own = [*given, *point.settings]
        wanted = read(found, split(own)[0])
        wanted.require_clients(testbed.clients)
        rules.require(wanted, testbed.clients, rules.read(rules.calibration_file(testbed.name)))
        plan = resolve(found, own, app=None, content_dir=content_dir())
        todo.append((point, own, wanted, plan, schedule.of(plan, testbed, found, own)))

    options = Options(verbose=verbose, become_password=ask_password(ask_become_pass))
    done, failed = {}, []
    with alone(testbed):
        for number, (point, own, wanted, plan, steps) in enumerate(todo, start=1):
            values = ", ".join(f"{key} {value}" for key, value in point.columns.items())
            folder = finished(wanted, testbed.clients, runs_dir())
            state = f"finished already, in {folder}" if folder else "begins"
            print(f"run {number} of {len(todo)} ({values}): {state}", file=sys.stderr, flush=True)
            try:
                done[number] = folder or train(
                    testbed,
                    options,
                    plan,
                    found,
                    own,
                    steps,
                    name=f"{plan.name}-{number}",
                    output=None,
                )
            except RunFailed as error:
                print(explain(error), file=sys.stderr, flush=True)
                failed.append(f"run {number} ({values}): {error.message}")
    if len(done) > 1:
        runs = comparison.read(list(done.values()))
        accuracy = comparison.reached_by_all(runs)
        rows = [
            {**todo[number - 1][0].columns, **measure}
            for number, measure in zip(done, comparison.measures(runs, accuracy), strict=True)
        ]
        show({"runs": rows}, output)
        if file:
            comparison.write(runs, accuracy, file)
            print(f"page: {file}", file=sys.stderr)
    if failed:
        raise RunFailed("\n".join(failed), "the same command runs again what has failed")
