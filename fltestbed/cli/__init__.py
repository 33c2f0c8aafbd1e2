"""The command line: every command parses, calls the library and prints."""

import contextlib
import errno
import signal
import sys
from typing import Annotated, NoReturn

import click
import typer
import typer.core

from fltestbed.cli import lab
from fltestbed.cli._render import explain
from fltestbed.cli.calibrate import calibrate
from fltestbed.cli.check import check
from fltestbed.cli.compare import compare
from fltestbed.cli.conditions import kill, partition, pause, reboot, rejoin, restore, shape, throttle
from fltestbed.cli.down import down
from fltestbed.cli.experiments import experiments
from fltestbed.cli.export import export
from fltestbed.cli.init import init
from fltestbed.cli.logs import logs
from fltestbed.cli.open import open_
from fltestbed.cli.plan import plan
from fltestbed.cli.report import report
from fltestbed.cli.revoke import revoke
from fltestbed.cli.run import run
from fltestbed.cli.status import status
from fltestbed.cli.stop import stop
from fltestbed.cli.sweep import sweep
from fltestbed.cli.timeline import timeline
from fltestbed.cli.up import up
from fltestbed.cli.verify import verify
from fltestbed.cli.watch import watch
from fltestbed.errors import Cancelled, FltestbedError
from fltestbed.paths import full_disk

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
typer.core.HAS_RICH = False  # plain help is the same in a pipe, in the docs and on a terminal, and comes faster
app = typer.Typer(
    name="fltestbed",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lab.app, name="lab")
for command in (
    init,
    check,
    plan,
    up,
    experiments,
    timeline,
    run,
    sweep,
    report,
    compare,
    export,
    status,
    logs,
    stop,
    revoke,
    down,
):
    app.command()(command)
app.command("open")(open_)
app.command()(watch)
app.command()(verify)
app.command()(calibrate)
for condition in (throttle, shape, pause, kill, partition, reboot, rejoin, restore):
    app.command()(condition)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"fltestbed {version('fltestbed')}")
        raise typer.Exit


@app.callback()
def _global(
    _version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Deploy federated-learning testbeds on real, heterogeneous machines.

    An inventory folder is a testbed; every command is a playbook that runs without this program too.
    """


def main() -> None:
    """Run the command line. The one place where errors become text and exit codes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        code = app(prog_name="fltestbed", standalone_mode=False)
        if code == Cancelled.exit_code:
            raise Cancelled("stopped as asked; no playbook was running")
        sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        _leave(Cancelled("stopped as asked"))
    except FltestbedError as error:
        _leave(error)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _leave(full_disk(error))


def _leave(error: FltestbedError) -> NoReturn:
    """End with what an error says, and with its code even where nothing can be said any more."""
    with contextlib.suppress(OSError):
        print(explain(error), file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
