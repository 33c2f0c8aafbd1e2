"""fltestbed run."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fltestbed.cli._options import (
    DEFAULT_INVENTORY,
    AskBecomePass,
    Format,
    Inventory,
    OutputFormat,
    Verbose,
)
from fltestbed.cli._render import Rows, cell, show, table
from fltestbed.cli._verbs import Options, alone, ask_password, play
from fltestbed.errors import Cancelled, ExperimentError, FltestbedError, RunFailed
from fltestbed.inventory import Testbed, load
from fltestbed.paths import content_dir, expanded, find_experiment, find_inventory, runs_dir
from fltestbed.runner import Event, RunResult

if TYPE_CHECKING:
    from fltestbed.plan import Plan
    from fltestbed.timeline.schedule import Step

_ROUND = ("round", "seconds", "clients_ok", "clients_failed", "server_accuracy", "server_loss", "client_accuracy")


def _check_name(name: str) -> str:
    if name and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}", name):
        raise typer.BadParameter("use a to z, 0 to 9 and hyphens, at most 60 characters")
    return name


def absolute(setting: str) -> str:
    """Return a setting whose path, which is relative to the working directory, became absolute."""
    key, _, path = setting.partition("=")
    return f"{key}={expanded(path).absolute()}" if key == "data.path" else setting


def run(
    experiment: Annotated[str, typer.Argument(show_default=False)] = "",
    app: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", show_default=False, help="A Flower app to run; without it, the one that EXPERIMENT names."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A value for this run: of the experiment, as in rounds=2, or one of the app. May be repeated.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(callback=_check_name, help="What the results' folder is called, after the time.")
    ] = "",
    inventory: Inventory = DEFAULT_INVENTORY,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Train on a testbed that is up, and bring the results here.

    EXPERIMENT is a file, or the name of one in ./experiments or of a built-in one. An app of your own goes without.
    """
    from fltestbed import rules
    from fltestbed.plan import resolve
    from fltestbed.timeline import schedule

    settings = [absolute(setting) for setting in settings or []]
    testbed = load(find_inventory(inventory))
    file = find_experiment(experiment) if experiment else None
    plan = resolve(file, settings, app=app, content_dir=content_dir())
    if plan.experiment:
        plan.experiment.require_clients(testbed.clients)
        rules.require(plan.experiment, testbed.clients, rules.read(rules.calibration_file(testbed.name)))
        if plan.experiment.sweep or plan.experiment.repeats > 1:
            raise ExperimentError(
                f"{file}: is of many runs, as it has sweep or repeats",
                f"fltestbed sweep {experiment} runs them; --set sweep=null --set repeats=1 runs one",
            )
    steps = schedule.of(plan, testbed, file, settings)
    options = Options(verbose=verbose, become_password=ask_password(ask_become_pass))
    with alone(testbed):
        train(testbed, options, plan, file, settings, steps, name=name or plan.name, output=output)


def train(
    testbed: Testbed,
    options: Options,
    plan: "Plan",
    file: Path | None,
    settings: Sequence[str],
    steps: Sequence["Step"],
    *,
    name: str,
    output: Format | None,
) -> Path:
    """Run a plan on a testbed that nobody else uses, and return the folder of the results.

    The steps of its timeline are carried out beside it. What came back is shown with `output`, if any.
    """
    run_name = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    extra_vars = {
        "experiment_file": str(file or ""),
        "app_dir": str(plan.app.path),
        "experiment_settings": list(settings),
        "run_name": run_name,
        "runs_dir": str(runs_dir()),
        "timeline_driven": True,
    }
    _train(testbed, options, extra_vars, plan, steps, output=output)
    return runs_dir() / run_name


def _train(
    testbed: Testbed,
    options: Options,
    extra_vars: Mapping[str, Any],
    plan: "Plan",
    steps: Sequence["Step"],
    *,
    output: Format | None,
) -> None:
    """Run the experiment; show what came back, whatever became of it."""
    folder = Path(extra_vars["runs_dir"]) / extra_vars["run_name"]
    try:
        result = _follow(testbed, options, extra_vars, plan, steps, folder)
    except Cancelled:
        _stop(testbed, options, extra_vars, folder)
    if folder.is_dir():
        if output:
            show(summary(folder), output)
        print(f"results: {folder}", file=sys.stderr)
        _conclude(testbed, folder)
    if (folder / "run.json").exists():
        require_finished(folder)
    result.require_success()
    require_finished(folder)


def _follow(
    testbed: Testbed,
    options: Options,
    extra_vars: Mapping[str, Any],
    plan: "Plan",
    steps: Sequence["Step"],
    folder: Path,
) -> RunResult:
    """Play the run with its timeline beside it; conditions are put back before this returns or raises."""
    from fltestbed.plan import client_rows
    from fltestbed.timeline.conduct import conduct

    rounds = plan.experiment.rounds if plan.experiment else 0
    with conduct(steps, testbed, folder, lambda line: print(line, file=sys.stderr, flush=True)) as driver:

        def line(event: Event) -> str:
            if (
                event.module == "testbed_experiment"
                and event.kind == "ok"
                and plan.experiment
                and plan.experiment.rules
            ):
                return "\n" + table(client_rows(event.result["partitions"], testbed.clients)) + "\n"
            if event.module == "testbed_run" and event.kind in ("item", "ok"):
                driver.hear(event.result)
                if not plan.app.reports and event.changed:  # it was submitted
                    driver.begin()
            return news(event, rounds)

        return play("run", testbed.path, options, extra_vars, line)


def _stop(testbed: Testbed, options: Options, extra_vars: Mapping[str, Any], folder: Path) -> NoReturn:
    print("stopping the run and collecting what it has; Ctrl-C again leaves at once", file=sys.stderr, flush=True)
    try:
        play(
            "stop", testbed.path, options, {key: extra_vars[key] for key in ("run_name", "runs_dir")}
        ).require_success()
    except FltestbedError as error:
        raise Cancelled(
            f"left before the run was stopped ({error.message}); it may still go on", "fltestbed stop ends it"
        ) from error
    if folder.is_dir():
        _conclude(testbed, folder)
    where = f"; what it has is in {folder}" if folder.is_dir() else ""
    raise Cancelled(f"the run was stopped{where}", "the testbed is still up; fltestbed run starts a new run")


def _conclude(testbed: Testbed, folder: Path) -> None:
    """Write what the devices measured, and the report. A run is not lost for want of them, whatever the reason."""
    for what, write in (("devices' figures", _write_figures), ("report", _write_report)):
        try:
            print(write(testbed, folder), file=sys.stderr, flush=True)
        except Exception as error:
            print(
                f"warning: no {what}: {type(error).__name__}: {error}; the results are whole, and "
                f"fltestbed report {folder.name} writes a report of what there is",
                file=sys.stderr,
            )


def _write_figures(testbed: Testbed, folder: Path) -> str:
    from fltestbed import figures

    return figures.write(testbed, folder)


def _write_report(_testbed: Testbed, folder: Path) -> str:
    from fltestbed import report

    return f"report: {report.write(folder)}"


def news(event: Event, rounds: int) -> str:
    """Return what to say of an event.

    A line for each condition that is in force, or a finished round; an app's own log lines; nothing for the rest.
    """
    if event.kind == "ok" and event.module == "testbed_status":
        return "\n".join(
            f"{event.host}: {each['text']} since {each['since']}" + (", lost in a reboot" if each["lost"] else "")
            for each in event.result["conditions"]
            if each["kind"] != "network" or each["lost"]
        )
    said = event.result if event.kind == "item" and event.module == "testbed_run" else {}
    row = said.get("round")
    if not row:
        return "\n".join(said.get("lines", []))
    return (
        f"round {row['round']}/{rounds}  accuracy {cell('', row['server_accuracy'])}  "
        f"loss {cell('', row['server_loss'])}  {row['seconds']:.1f} s  "
        f"clients {row['clients_ok']} ok, {row['clients_failed']} failed"
    )


def summary(folder: Path) -> dict[str, Rows]:
    """Return a run's rounds, and what each client did in them; of an app that reports no rounds, how the run went."""
    if not (folder / "rounds.jsonl").exists() and (folder / "run.json").exists():
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {
            "run": [{"run": folder.name, "status": run["status"], "seconds": _seconds(run), "reason": run["reason"]}]
        }
    clients: dict[str, list[dict[str, Any]]] = {}
    for row in _read_rows(folder / "clients.jsonl"):
        clients.setdefault(row["client"], []).append(row)
    return {
        "rounds": [{key: row[key] for key in _ROUND} for row in _read_rows(folder / "rounds.jsonl")],
        "clients": [_client(rows) for _, rows in sorted(clients.items())],
    }


def _seconds(run: Mapping[str, Any]) -> float | None:
    """Return how long a run took, by its own record."""
    if "started" not in run:
        return None
    return (datetime.fromisoformat(run["updated"]) - datetime.fromisoformat(run["started"])).total_seconds()


def _client(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in rows if row["failure"] is None]
    failures = [row["failure"] for row in rows if row["failure"] is not None]
    seconds, peaks = ([row[key] for row in good if row[key] is not None] for key in ("train_seconds", "peak_memory_mb"))
    return {
        "device": rows[0]["device"],
        "client": rows[0]["client"],
        "rounds_ok": len(good),
        "rounds_failed": len(failures),
        "train_seconds": sum(seconds) / len(seconds) if seconds else None,
        "examples": good[-1]["examples"] if good else None,
        "accuracy": good[-1]["accuracy"] if good else None,
        "peak_memory_mb": max(peaks, default=None),
        "last_failure": failures[-1] if failures else None,
    }


def _read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def require_finished(folder: Path) -> None:
    """Raise RunFailed unless the run's own record says that it finished."""
    record = folder / "run.json"
    if not record.exists():
        raise RunFailed(f"the run left no {record}", "fltestbed logs server shows what the server said")
    run = json.loads(record.read_text(encoding="utf-8"))
    if run["status"] != "finished":
        raise RunFailed(f"the run is {run['status']}: {run['reason']}", f"what it has, logs too, is in {folder}")
