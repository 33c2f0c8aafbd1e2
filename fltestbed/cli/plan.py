"""fltestbed plan."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Format, Inventory, Limit, OutputFormat, Verbose
from fltestbed.cli._render import show
from fltestbed.cli._verbs import Options, ask_password, play, say_left_behind
from fltestbed.cli.run import absolute
from fltestbed.inventory import Testbed, load
from fltestbed.paths import cache_dir, content_dir, find_experiment, find_inventory
from fltestbed.runner import Event, RunResult

_MARKS = {"create": "+", "recreate": "~", "start": "~", "remove": "-"}


def plan(
    experiment: Annotated[str, typer.Argument(show_default=False)] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value for EXPERIMENT, as in rounds=2. May be repeated."),
    ] = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Say what `up` would do, host by host, and change nothing. With EXPERIMENT: what its clients would train with.

    Of each host: why anything is to do, the packages, the files with their differences, the images and the containers.
    With EXPERIMENT, no host is asked: of each client its limits, its examples, its settings, and which rules set them.
    """
    testbed = load(find_inventory(inventory))
    if experiment:
        show({"clients": _of_clients(testbed, experiment, settings or [])}, output)
        return
    if settings:
        raise typer.BadParameter("there is no EXPERIMENT to set it of", param_hint="--set")
    packages: dict[str, list[str]] = {}

    def note(event: Event) -> str:
        if event.module == "apt" and event.changed:
            packages.setdefault(event.host, []).extend(event.result["invocation"]["module_args"]["name"])
        return ""

    result = play(
        "up",
        testbed.path,
        Options(limit=limit, check=True, diff=True, verbose=verbose, become_password=ask_password(ask_become_pass)),
        line=note,
    )
    steps = steps_of(result, packages)
    if output is Format.json:
        show(steps, output)
    else:
        print(explain(steps))
    say_left_behind(testbed)
    result.require_success()


def _of_clients(testbed: Testbed, experiment: str, settings: Sequence[str]) -> list[dict[str, Any]]:
    from fltestbed.plan import client_rows, prepare, resolve
    from fltestbed.rules import calibration_file

    wanted = resolve(
        find_experiment(experiment), [absolute(setting) for setting in settings], app=None, content_dir=content_dir()
    )
    prepared = prepare(wanted, testbed.clients, cache_dir=cache_dir(), calibration=calibration_file(testbed.name))
    return client_rows(prepared["partitions"], testbed.clients)


def steps_of(result: RunResult, packages: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
    """Return what is to do on each host of a rehearsed `up`, rows of `what`, `name`, `action`, a file's `diff`."""
    hosts: dict[str, list[dict[str, Any]]] = {}
    for host, compared in sorted(result.results("testbed_settled").items()):
        rows = hosts[host] = [{"what": "reason", "name": text, "action": "note"} for text in compared["differences"]]
        rows += [{"what": "package", "name": name, "action": "create"} for name in packages.get(host, [])]
        for diff in result.results("testbed_tree").get(host, {}).get("diff", []):
            action = "remove" if diff["after_header"] == "(removed)" else "recreate" if diff["before"] else "create"
            rows.append({"what": "file", "name": diff["before_header"], "action": action, "diff": _unified(diff)})
        containers = result.results("testbed_rehearsal").get(host, {"images": [], "containers": []})
        rows += [{"what": "image", "name": name, "action": "create"} for name in containers["images"]]
        rows += [
            {"what": "container", "name": row["service"], "action": row["action"]} for row in containers["containers"]
        ]
    return hosts


def explain(hosts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the steps as text: `+` is new, `~` changes, `-` goes."""
    lines = []
    for host, rows in hosts.items():
        lines.append(f"{host}: {'nothing to do' if not rows else ''}".rstrip())
        for row in rows:
            if row["what"] == "reason":
                lines.append(f"    because {row['name']}")
                continue
            verb = f" ({row['action']})" if row["what"] == "container" else ""
            lines.append(f"  {_MARKS[row['action']]} {row['what']} {row['name']}{verb}")
            lines += [f"      {line}" for line in row.get("diff", "").splitlines()]
    return "\n".join(lines)


def _unified(diff: Mapping[str, str]) -> str:
    from difflib import unified_diff

    if not diff["before"]:
        return ""  # a new file; compose.yml alone has a hundred lines
    lines = unified_diff(diff["before"].splitlines(), diff["after"].splitlines(), lineterm="", n=1)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))
