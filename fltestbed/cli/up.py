"""fltestbed up."""

import sys

from fltestbed.certificates import require_admitted
from fltestbed.cli._options import DEFAULT_INVENTORY, AskBecomePass, Check, Diff, Inventory, Limit, Tags, Verbose
from fltestbed.cli._verbs import Options, alone, ask_password, play, say_left_behind
from fltestbed.inventory import load
from fltestbed.paths import find_inventory, state_dir
from fltestbed.runner import Event, RunResult


def up(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    tags: Tags = "",
    check: Check = False,
    diff: Diff = False,
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
) -> None:
    """Bring the hosts in line with the inventory.

    Doing it again changes only what differs; a training that runs goes on.
    """
    testbed = load(find_inventory(inventory))
    require_admitted(state_dir(testbed.name) / "pki", (client["client"] for client in testbed.clients))
    options = Options(limit, tags, check, diff, verbose, ask_password(ask_become_pass))
    with alone(testbed):
        result = play("up", testbed.path, options, line=reason)
    if not tags and (rest := unfinished(result)):
        print(f"not done: {', '.join(rest)}, as others failed before; the next up does it", file=sys.stderr)
    say_left_behind(testbed)
    result.require_success()


def unfinished(result: RunResult) -> list[str]:
    """Return the hosts that did not fail but were not come to, as the failure of another, the server, ended it all."""
    lost = {name for name, host in result.hosts.items() if host.failed or host.unreachable}
    answers = result.results("testbed_settled")
    return [name for name in sorted(answers) if lost and name not in lost and not answers[name]["settled"]]


def reason(event: Event) -> str:
    """Return why a host is not left alone, on the event that says so; nothing for the others."""
    found = event.result.get("differences") if event.kind == "ok" and event.module == "testbed_settled" else None
    if not found:
        return ""
    more = f", and {len(found) - 2} more" if len(found) > 2 else ""
    return f"{event.host}: {', '.join(found[:2])}{more}"
