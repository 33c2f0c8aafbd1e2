"""What status makes of the hosts' answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from fltestbed import inventory
from fltestbed.cli._options import Format
from fltestbed.cli._render import show
from fltestbed.cli.status import require_health, rows
from fltestbed.errors import HostsFailed
from fltestbed.inventory import SERVER_SERVICES, Host, client_services

GIB = 1024**3
TESTBED = inventory.Testbed(
    name="lab",
    path=Path("lab"),
    server=Host("server"),
    devices=(Host("pi-1"), Host("pi-2")),
    clients=tuple(
        {"device": name, "client": name, "cpus": cpus, "memory": memory, "settings": {}}
        for name, cpus, memory in (("pi-1", 0.5, GIB), ("pi-2", None, None))
    ),
    root="/opt/fltestbed/lab",
)


def container(service: str, **more: Any) -> dict[str, Any]:
    return {"service": service, "state": "running", "health": "healthy", "started": "2026-01-01T00:00:00Z"} | more


def healthy() -> dict[str, dict[str, Any]]:
    facts = {"os": "Debian", "arch": "aarch64", "docker": "26.1", "conditions": []}
    answers: dict[str, dict[str, Any]] = {
        "server": facts | {"containers": [container(service) for service in SERVER_SERVICES]}
    }
    for name, cpus, memory in (("pi-1", 0.5, GIB), ("pi-2", None, None)):
        supernode, trains = client_services(name)
        answers[name] = facts | {"containers": [container(supernode), container(trains, cpus=cpus, memory=memory)]}
    answers["server"]["nodes"] = [{"name": "pi-1", "status": "online", "node_id": "1"}]
    answers["server"]["run"] = {"name": "r", "status": "running", "round": 2, "rounds": 5, "reason": None}
    return answers


def problems(answers: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    try:
        require_health(TESTBED, rows(TESTBED, answers), answers)
    except HostsFailed as error:
        return {host: found.message.splitlines() for host, found in error.hosts.items()}
    return {}


def test_a_healthy_testbed_has_no_problem() -> None:
    assert problems(healthy()) == {}


def test_clients_show_what_is_asked_what_the_kernel_has_and_their_supernode() -> None:
    parts = rows(TESTBED, healthy())
    assert parts["clients"][0] == {
        "device": "pi-1",
        "client": "pi-1",
        "supernode": "online",
        "cpus_asked": 0.5,
        "cpus": 0.5,
        "memory_asked": GIB,
        "memory": GIB,
    }
    assert parts["clients"][1]["supernode"] is None
    assert [row["round"] for row in parts["run"]] == [2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"state": "exited"}, "client-pi-1 is exited"),
        ({"health": "unhealthy"}, "client-pi-1 is unhealthy"),
        ({"cpus": 1.0}, "pi-1 has cpus 1, and 0.5 is asked for"),
        ({"cpus": None}, "pi-1 has cpus -, and 0.5 is asked for"),
        ({"memory": 2 * GIB}, "pi-1 has memory 2048m, and 1024m is asked for"),
    ],
)
def test_what_is_wrong_with_a_container_is_found(change: dict[str, Any], problem: str) -> None:
    answers = healthy()
    answers["pi-1"]["containers"][1] |= change
    assert problems(answers) == {"pi-1": [problem]}


def test_a_limit_rounded_down_to_a_page_is_the_limit() -> None:
    answers = healthy()
    answers["pi-1"]["containers"][1]["memory"] = GIB - 4096
    assert problems(answers) == {}


def test_a_limit_that_nobody_asked_for_is_found() -> None:
    answers = healthy()
    answers["pi-2"]["containers"][1]["memory"] = GIB
    assert problems(answers) == {"pi-2": ["pi-2 has memory 1024m, and - is asked for"]}


def test_containers_that_are_missing_are_found() -> None:
    answers = healthy()
    answers["server"]["containers"].pop()
    answers["pi-2"] |= {"docker": None, "containers": []}
    assert problems(answers) == {
        "server": ["proxy is not there"],
        "pi-2": ["supernode-pi-2 is not there", "client-pi-2 is not there"],
    }


def test_a_host_that_did_not_answer_is_shown_but_is_no_failure_of_its_containers() -> None:
    answers = healthy()
    del answers["pi-1"]
    parts = rows(TESTBED, answers)
    assert parts["hosts"][1] == {"host": "pi-1", "os": None, "arch": None, "docker": None}
    assert problems(answers) == {}


def test_a_condition_is_shown_and_explains_what_it_changed_and_nothing_else() -> None:
    answers = healthy()
    throttle = {"kind": "throttle", "client": "pi-1", "parameters": {"cpus": 0.2}, "text": "pi-1 throttled to 0.2 cpus"}
    kill = {"kind": "kill", "client": "pi-2", "parameters": {}, "text": "pi-2 killed"}
    since = {"since": "2026-01-01T00:00:00Z", "lost": False}
    answers["pi-1"]["conditions"], answers["pi-2"]["conditions"] = [throttle | since], [kill | since]
    answers["pi-1"]["containers"][1]["cpus"] = 0.2
    for row in answers["pi-2"]["containers"]:
        row["state"] = "exited"
    assert problems(answers) == {}
    assert rows(TESTBED, answers)["conditions"][0] == {
        "host": "pi-1",
        "condition": "pi-1 throttled to 0.2 cpus",
        "since": "2026-01-01T00:00:00Z",
        "in_force": True,
    }
    answers["pi-1"]["containers"][1]["cpus"] = 0.1
    assert problems(answers) == {"pi-1": ["pi-1 has cpus 0.1, and 0.2 is asked for"]}


def test_table_and_json_show_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        "clients": [{"client": "pi-1", "memory_asked": GIB, "ok": True}, {"client": "pi-22", "memory_asked": None}]
    }
    show(parts, Format.json)
    assert json.loads(capsys.readouterr().out) == parts
    show(parts | {"run": []}, Format.table)
    assert capsys.readouterr().out.splitlines() == [
        "CLIENTS",
        "client  memory asked  ok",
        "pi-1           1024m  yes",
        "pi-22              -  -",
    ]
