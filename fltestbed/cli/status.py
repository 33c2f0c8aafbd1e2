"""fltestbed status."""

from collections.abc import Container, Mapping
from typing import Any

from fltestbed.certificates import certificates, revoked
from fltestbed.cli._options import (
    DEFAULT_INVENTORY,
    AskBecomePass,
    Format,
    Inventory,
    Limit,
    OutputFormat,
    Verbose,
)
from fltestbed.cli._render import Rows, cell, show
from fltestbed.cli._verbs import Options, ask_password, play
from fltestbed.errors import HostError, HostsFailed
from fltestbed.inventory import SERVER_SERVICES, Testbed, client_services, load
from fltestbed.paths import find_inventory, state_dir

_PAGE = 65536  # bytes: kernels round a memory limit down to a page

Results = Mapping[str, Mapping[str, Any]]


def status(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    verbose: Verbose = 0,
    ask_become_pass: AskBecomePass = False,
    output: OutputFormat = Format.table,
) -> None:
    """Show hosts, clients, containers, the run and certificates.

    Of each client: the limits that the inventory asks for, those that the kernel enforces, and its SuperNode's state.
    """
    testbed = load(find_inventory(inventory))
    pki = state_dir(testbed.name) / "pki"
    held = [each.row() for each in certificates(pki)]
    result = play(
        "status", testbed.path, Options(limit=limit, verbose=verbose, become_password=ask_password(ask_become_pass))
    )
    answers = result.results("testbed_status")
    parts = rows(testbed, answers, revoked(pki)) | {"certificates": held}
    show(parts, output)
    require_health(testbed, parts, answers)
    result.require_success()


def rows(testbed: Testbed, answers: Results, revoked: Container[str] = ()) -> dict[str, Rows]:
    """Return hosts, clients, containers, conditions and the run. Limits asked are the inventory's."""
    server = answers.get(testbed.server.name, {})
    online = {node["name"]: node["status"] for node in server.get("nodes", [])}
    services = {container["service"]: container for answer in answers.values() for container in answer["containers"]}
    hosts = [
        {"host": host.name} | {key: answers.get(host.name, {}).get(key) for key in ("os", "arch", "docker")}
        for host in testbed.hosts
    ]
    clients = []
    for client in testbed.clients:
        container = services.get(client_services(client["client"])[1], {})
        clients.append(
            {
                "device": client["device"],
                "client": client["client"],
                "supernode": "revoked" if client["client"] in revoked else online.get(client["client"]),
                "cpus_asked": client["cpus"],
                "cpus": container.get("cpus"),
                "memory_asked": client["memory"],
                "memory": container.get("memory"),
            }
        )
    conditions = [
        {"host": host, "condition": each["text"], "since": each["since"], "in_force": not each["lost"]}
        for host, answer in sorted(answers.items())
        for each in answer["conditions"]
    ]
    containers = [
        {"host": host} | {key: container[key] for key in ("service", "state", "health", "started")}
        for host, answer in sorted(answers.items())
        for container in answer["containers"]
    ]
    run = [server["run"]] if server.get("run") else []
    return {"hosts": hosts, "clients": clients, "containers": containers, "conditions": conditions, "run": run}


def require_health(testbed: Testbed, parts: Mapping[str, Rows], answers: Results) -> None:
    """Raise HostsFailed when a container does not run, or a limit is not the one that the inventory asks for.

    Hosts that did not answer are left out, and so is what a condition explains.
    """
    changed = [each for answer in answers.values() for each in answer["conditions"]]
    stopped_clients = [each["client"] for each in changed if each["kind"] in ("pause", "kill")]
    stopped = {service for client in stopped_clients for service in client_services(client)}
    throttled = {each["client"]: each["parameters"] for each in changed if each["kind"] == "throttle"}
    problems: dict[str, list[str]] = {}
    there = {(row["host"], row["service"]): row for row in parts["containers"]}
    needed = [(testbed.server.name, service) for service in SERVER_SERVICES]
    needed += [
        (client["device"], service) for client in testbed.clients for service in client_services(client["client"])
    ]
    for host, service in dict.fromkeys([*needed, *there]):
        row = there.get((host, service), {"state": "not there", "health": None})
        if host in answers and service not in stopped and (row["state"] != "running" or row["health"] == "unhealthy"):
            state = row["state"] if row["state"] != "running" else row["health"]
            problems.setdefault(host, []).append(f"{service} is {state}")
    for row in parts["clients"]:
        service = client_services(row["client"])[1]
        if (row["device"], service) not in there or service in stopped:
            continue
        for limit, tolerance in (("cpus", 0.005), ("memory", _PAGE)):
            asked, got = throttled.get(row["client"], {}).get(limit, row[f"{limit}_asked"]), row[limit]
            if (asked is None) != (got is None) or abs((asked or 0) - (got or 0)) >= tolerance:
                problems.setdefault(row["device"], []).append(
                    f"{row['client']} has {limit} {cell(limit, got)}, and {cell(limit, asked)} is asked for"
                )
    if problems:
        raise HostsFailed(
            f"{len(problems)} of {len(parts['hosts'])} hosts are not as the inventory says",
            {host: HostError("", "\n".join(lines)) for host, lines in problems.items()},
            "fltestbed up brings them in line; fltestbed logs HOST shows why a container stopped",
        )
