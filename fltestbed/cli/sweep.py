"""fltestbed sweep."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Format, Inventory, OutputFormat, Verbose
from fltestbed.cli._render import explain, show
from fltestbed.cli._verbs import Options, alone, ask_password
from fltestbed.cli.run import absolute, train
from fltestbed.errors import (
    AnsibleFailed,
    AppError,
    ExperimentError,
    FltestbedError,
    HostsError,
    HostsUnreachable,
    RunFailed,
)
from fltestbed.inventory import Testbed, load
from fltestbed.paths import cache_dir, content_dir, find_experiment, find_inventory, runs_dir

if TYPE_CHECKING:
    from fltestbed.plan import Plan
    from fltestbed.sweep import Point
    from fltestbed.timeline.schedule import Step


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
    from fltestbed.experiment import load as read
    from fltestbed.experiment import split
    from fltestbed.sweep import points

    given = [absolute(setting) for setting in settings or []]
    testbed = load(find_inventory(inventory))
    found = find_experiment(experiment)
    wanted = points(read(found, split(given)[0]), given)
    todo: list[tuple[_Run, Plan, list[Step]]] = []
    errors: list[tuple[_Run, FltestbedError]] = []
    for number, point in enumerate(wanted, start=1):
        values = ", ".join(f"{key} {value}" for key, value in point.columns.items())
        run = _Run(number, f"run {number} of {len(wanted)} ({values})", point, [*given, *point.settings])
        try:
            todo.append((run, *_resolve(testbed, found, run.settings)))
        except (AppError, ExperimentError) as error:
            errors.append((run, error))
    if not todo:
        raise errors[0][1]
    failed = [_failed(run, error) for run, error in errors]

    options = Options(verbose=verbose, become_password=ask_password(ask_become_pass))
    done: dict[Path, _Run] = {}
    with alone(testbed):
        for place, (run, plan, steps) in enumerate(todo, start=1):
            try:
                done[_train(testbed, options, found, run, plan, steps)] = run
            except (AnsibleFailed, ExperimentError, HostsError, RunFailed) as error:
                failed.append(_failed(run, error))
                if _is_gone(testbed, error) and place < len(todo):
                    failed.append(f"{len(todo) - place} more were not begun: they would fail as this one did")
                    break
    if done:
        _compare(done, output, file)
    if failed:
        raise RunFailed("\n".join(failed), "the same command runs what is not finished")


class _Run(NamedTuple):
    """One run of a sweep: its number, from 1, what it is called, and what it takes of the sweep."""

    number: int
    name: str
    point: "Point"
    settings: list[str]


def _resolve(testbed: Testbed, file: Path, settings: list[str]) -> "tuple[Plan, list[Step]]":
    """Return the plan of a run and the steps of its timeline. Raises AppError and ExperimentError."""
    from fltestbed import rules
    from fltestbed.plan import resolve
    from fltestbed.timeline import schedule

    plan = resolve(file, settings, app=None, content_dir=content_dir())
    if plan.experiment:
        plan.experiment.require_clients(testbed.clients)
        rules.require(plan.experiment, testbed.clients, rules.read(rules.calibration_file(testbed.name)))
    return plan, schedule.of(plan, testbed, file, settings)


def _train(testbed: Testbed, options: Options, file: Path, run: _Run, plan: "Plan", steps: Sequence["Step"]) -> Path:
    """Return the folder of a run, which is finished: already, or now.

    A host that was lost does not lose the run: what the server's record says counts.
    """
    from fltestbed.plan import prepare
    from fltestbed.rules import calibration_file
    from fltestbed.sweep import finished

    prepared = prepare(plan, testbed.clients, cache_dir=cache_dir(), calibration=calibration_file(testbed.name))
    folder = finished(prepared, testbed, runs_dir())
    _say(f"{run.name}: {f'finished already, in {folder}' if folder else 'begins'}")
    if folder:
        return folder
    try:
        return train(testbed, options, plan, file, run.settings, steps, name=f"{plan.name}-{run.number}", output=None)
    except HostsError as error:
        folder = finished(prepared, testbed, runs_dir())
        if folder is None:
            raise
        _say(explain(error))
        _say(f"warning: {run.name}: finished all the same, and counts; what those hosts have of it may be missing")
        return folder


def _is_gone(testbed: Testbed, error: FltestbedError) -> bool:
    """Return whether no run can be, as nothing reaches the server, or Ansible does not begin."""
    lost = error.hosts if isinstance(error, HostsUnreachable) else {}
    return testbed.server.name in lost or isinstance(error, AnsibleFailed)


def _failed(run: _Run, error: FltestbedError) -> str:
    """Say what stopped a run, and return it in a line."""
    _say(f"{run.name}: {explain(error)}")
    return f"{run.name}: {error.message}"


def _compare(done: Mapping[Path, _Run], output: Format, file: Path | None) -> None:
    """Show the runs of a sweep side by side, by their folders."""
    from fltestbed import compare as comparison
    from fltestbed import results

    runs = [results.load(folder) for folder in done]
    accuracy = comparison.reached_by_all(runs)
    values = {folder.name: run.point.columns for folder, run in done.items()}
    rows = [{**values[row["run"]], **row} for row in comparison.measures(runs, accuracy)]
    show({"runs": rows, "repeats": comparison.repeats(runs, accuracy, values)}, output)
    if file:
        comparison.write(runs, accuracy, file)
        _say(f"page: {file}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
