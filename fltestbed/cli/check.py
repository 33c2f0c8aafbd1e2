"""fltestbed check."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from fltestbed.checks import BETWEEN_HOSTS, host_findings, lost_host, safe_fixes
from fltestbed.cli._options import (
    DEFAULT_INVENTORY,
    AskBecomePass,
    Format,
    Inventory,
    Limit,
    OutputFormat,
    Verbose,
    Yes,
)
from fltestbed.cli._render import Rows, show
from fltestbed.cli._verbs import Options, alone, ask_password, confirm, play
from fltestbed.errors import HostError, InventoryError, PreflightError
from fltestbed.findings import Finding
from fltestbed.inventory import Testbed, findings, load
from fltestbed.paths import find_inventory
from fltestbed.runner import RunResult

_FACTS = ("os", "arch", "python", "docker", "compose", "cgroup", "cpus", "memory", "disk_free_mb")


def check(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend, after asking.")] = False,
    yes: Yes = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Look for what would stop a deployment or falsify its results.

    First in the inventory; then, if that has no error, on all hosts at once. Nothing is changed, except with --fix.
    """
    folder = find_inventory(inventory)
    found = findings(folder)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        _show(found, [], output)
        raise InventoryError(f"{folder} has {_count(errors)}", "correct them as said above; no host was touched")
    testbed = load(folder)
    options = Options(limit=limit, verbose=verbose, become_password=ask_password(ask_become_pass))
    result = play("check", folder, options)
    on_hosts, safe = _findings(testbed, result)
    if fix and safe:
        wanted = [row for row in on_hosts if row.where in safe.get(row.host, ())]
        said = "".join(f"{row.host}, {row.where}: {row.what}\n" for row in wanted)
        confirm(f"{said}Mend this?", yes)
        with alone(testbed):
            result = play("check", folder, options, {"check_fix": safe}, _fixed)
        on_hosts, safe = _findings(testbed, result)
    found += on_hosts
    _show(found, host_rows(result, found), output, safe)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        hosts = len({finding.host for finding in errors})
        raise PreflightError(
            f"{hosts} of {len(result.hosts)} hosts cannot be used as they are: {_count(errors)}",
            {},
            "each is said above with what to do"
            + ("; fltestbed check --fix mends those marked so" if safe and not fix else ""),
        )


def _findings(testbed: Testbed, result: RunResult) -> tuple[list[Finding], dict[str, list[str]]]:
    """Return what is wrong with the hosts, those included that could not be asked; and what is safe to mend there."""
    addresses = {host.name: str(host.connection.get("ansible_host", host.name)) for host in testbed.hosts}
    lost = [
        lost_host(name, addresses.get(name, name), host.error or HostError("", "no reason was given"))
        for name, host in sorted(result.hosts.items())
        if host.failed or host.unreachable
    ]
    answers = result.results("testbed_check")
    in_order = {name: answers[name] for name in [*addresses, *answers] if name in answers}
    found = host_findings(in_order, testbed.server.name)
    return lost + found, safe_fixes(answers, found)


def host_rows(result: RunResult, found: Sequence[Finding]) -> Rows:
    """Return a row for each host that answered: what it is, and how many checks found nothing."""
    rows = []
    for host, answer in sorted(result.results("testbed_check").items()):
        checks = {*answer["checked"], *BETWEEN_HOSTS}
        wrong = {finding.where for finding in found if finding.host == host}
        clock = round(sum(answer["clock"].values()) / 2, 2) if "clock" in answer else None
        facts: dict[str, Any] = {key: answer["facts"][key] for key in _FACTS}
        rows.append({"host": host, "fine": f"{len(checks - wrong)} of {len(checks)}", **facts, "clock_seconds": clock})
    return rows


def _fixed(event: Any) -> str:
    done = event.result.get("fixed") if event.kind == "ok" and event.module == "testbed_check" else None
    return "\n".join(f"{event.host}: {each}" for each in done or ())


def _show(
    found: Sequence[Finding], hosts: Rows, output: Format, safe: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print findings and hosts. Long sentences get lines of their own below the finding's host and check."""
    rows = [asdict(finding) | {"safe": finding.where in (safe or {}).get(finding.host, ())} for finding in found]
    if output is Format.json:
        show({"findings": rows, "hosts": hosts}, output)
        return
    width = min(shutil.get_terminal_size().columns, 120)
    if rows:
        print("FINDINGS")
    for row in rows:
        print("  ".join(part for part in (row["severity"], row["host"], row["where"]) if part))
        again = " (fltestbed check --fix does it)" if row["safe"] else ""
        for text in (row["what"], f"fix: {row['fix']}{again}"):
            print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    if rows and hosts:
        print()
    show({"hosts": hosts}, output)


def _count(errors: Sequence[Finding]) -> str:
    return "1 error" if len(errors) == 1 else f"{len(errors)} errors"
