"""fltestbed calibrate."""

import sys
from typing import Annotated

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Format, Inventory, OutputFormat, Verbose
from fltestbed.cli._render import show
from fltestbed.cli._verbs import Options, alone, ask_password, play
from fltestbed.cli.run import absolute
from fltestbed.errors import AppError, ExperimentError
from fltestbed.inventory import load
from fltestbed.paths import content_dir, find_experiment, find_inventory, state_dir

_PROGRAM = "testbed_app/calibrate.py"


def calibrate(
    experiment: Annotated[str, typer.Argument()] = "fashion-mnist-cnn",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A value of the experiment, as in train.batch_size=8. May be repeated."
        ),
    ] = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Measure how fast every client trains, and the memory that takes.

    The experiment's model is trained for some seconds with each of several batch sizes, in the client's own container,
    below its limits. Rules of an experiment can use the figures. No run may be on.
    """
    from fltestbed import calibration
    from fltestbed.plan import resolve

    settings = [*(absolute(setting) for setting in settings or []), "rules=[]"]  # which are what this is made for
    testbed = load(find_inventory(inventory))
    file = find_experiment(experiment)
    plan = resolve(file, settings, app=None, content_dir=content_dir())
    assert plan.experiment  # noqa: S101 for mypy: there is a file
    plan.experiment.require_clients(testbed.clients)
    if plan.experiment.data.source == "device":
        raise ExperimentError(
            f"{file}: the data lie on the devices, and calibrate brings its own",
            "calibrate an experiment with the same model and data that are brought",
        )
    if _PROGRAM not in plan.app.files:
        raise AppError(
            f"{plan.app.path}: has no {_PROGRAM}, so it cannot be calibrated",
            "calibrate an experiment that fltestbed's own app runs",
        )
    extra_vars = {
        "experiment_file": str(file),
        "experiment_settings": settings,
        "batch_sizes": calibration.batch_sizes(testbed.clients, plan.experiment),
    }
    options = Options(verbose=verbose, become_password=ask_password(ask_become_pass))
    with alone(testbed):
        result = play("calibrate", testbed.path, options, extra_vars)
        found, problems = calibration.calibrations(
            testbed.clients, plan.experiment, result.results("testbed_calibrate")
        )
        calibration.keep(state_dir(testbed.name) / "calibration.json", found)
    rows = [
        {"client": name} | row | {"own": row["batch_size"] == each["batch_size"]}
        for name, each in found.items()
        for row in each["batch_sizes"]
    ]
    show({"calibration": rows}, output)
    if slowed := calibration.disturbed(found):
        print(
            f"{', '.join(slowed)}: others had the cores; calibrate again when the machine is quiet",
            file=sys.stderr,
        )
    calibration.require_all(problems)
    result.require_success()
