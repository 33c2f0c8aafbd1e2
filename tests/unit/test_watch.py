"""The live view: what is looked at on a host, what becomes of it on a terminal of any size, and without one."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fltestbed import inventory, watching
from fltestbed.cli.watch import _tell, fitting, picture
from fltestbed.errors import FltestbedError, HostsUnreachable
from fltestbed.watching import Client, View, watch

ROUND = {
    "round": 1,
    "server_accuracy": 0.8312,
    "server_loss": 0.47,
    "seconds": 37.4,
    "clients_ok": 1,
    "clients_failed": 0,
}
ROW = {
    "client": "pi-1",
    "round": 1,
    "start": "2026-01-01T10:00:00.000+00:00",
    "end": "2026-01-01T10:00:36.500+00:00",
    "train_seconds": 11.9,
    "failure": None,
}
EVENT = {"when": "30 s", "device": "pi-1", "text": "throttle cpus 0.25", "error_seconds": 0.004}
HERE = {"ansible_connection": "local", "ansible_user": "root", "ansible_become": False}


@pytest.fixture
def testbed(tmp_path: Path) -> inventory.Testbed:
    """A testbed whose only host is this machine, on which no container of it runs."""
    (tmp_path / "watched" / "runs").mkdir(parents=True)
    here = inventory.Host("here", HERE)
    client = {"device": "here", "client": "pi-1", "cpus": 0.5, "memory": 512 * 2**20, "settings": {}}
    return inventory.Testbed("watched", tmp_path, here, (here,), (client,), str(tmp_path / "watched"))


def write(folder: Path, status: str, rounds: list[Any], clients: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("rounds", rounds), ("clients", clients)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"status": status, "reason": None, "round": len(rounds), "rounds": 2}
    (folder / ".run.json").write_text(json.dumps(record))
    (folder / ".run.json").replace(folder / "run.json")


def test_a_run_is_followed_to_its_end(testbed: inventory.Testbed, tmp_path: Path) -> None:
    """The real look at this host, in a process of its own."""
    folder = tmp_path / "watched" / "runs" / "20260101-100000-a"
    write(folder, "running", [], [])
    views = watch(testbed, 0.5)
    first = next(views)
    assert (first.run, first.record["status"], first.rounds) == ("20260101-100000-a", "running", [])
    assert [(client.name, client.state) for client in first.clients] == [("pi-1", "stopped")]
    write(folder, "running", [ROUND], [ROW])
    second = next(view for view in views if view.rounds)
    assert second.rounds == [ROUND] and second.clients[0].seconds == 36.5
    second_round = ROUND | {"round": 2}
    submitted = tmp_path / "watched" / "submitted"
    submitted.mkdir()
    (submitted / f"{folder.name}.conditions").write_text(json.dumps(EVENT) + "\n")
    write(folder, "finished", [ROUND, second_round], [ROW, ROW | {"round": 2}])
    last = list(views)[-1]
    assert last.ended and last.rounds == [ROUND, second_round]
    assert last.conditions == [EVENT]


def test_a_testbed_without_a_run_says_so(testbed: inventory.Testbed) -> None:
    with pytest.raises(FltestbedError, match="has had no run"):
        next(watch(testbed, 0.5))


def test_a_silent_server_is_named(testbed: inventory.Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_ANSWER", 1.0)
    monkeypatch.setattr(watching, "command", lambda host, argv: ["false"])
    with pytest.raises(HostsUnreachable) as raised:
        next(watch(testbed, 0.5))
    assert list(raised.value.hosts) == ["here"]


def view(clients: list[Client], status: str = "running", rounds: int = 7) -> View:
    record = {"status": status, "reason": None, "round": rounds, "rounds": 9}
    return View("20260101-100000-a", record, [ROUND | {"round": number + 1} for number in range(rounds)], clients)


def lines(shown: View, width: int, height: int | None) -> list[str]:
    console = Console(width=width, height=height or 100, record=True, file=io.StringIO())
    console.print(picture(shown, height))
    return console.export_text().splitlines()


def client(number: int, state: str = "waits") -> Client:
    return Client(f"pi-{number}", f"pi-{number}", state, 0.48, 0.5, 400 * 2**20, 640 * 2**20, ROW)


@pytest.mark.parametrize(
    ("groups", "files", "used"),
    [
        ("0::/a\n", {"a/memory.current": "9", "a/memory.stat": "inactive_file 2"}, 7),
        ("0::/a\n", {}, None),
        (
            "9:memory:/a\n4:cpu,cpuacct:/a\n",
            {"memory/a/memory.usage_in_bytes": "9", "memory/a/memory.stat": "total_inactive_file 2"},
            7,
        ),
        ("4:cpu,cpuacct:/a\n0::/\n", {}, None),
    ],
)
def test_a_look_at_a_client_with_and_without_the_kernels_memory_controller(
    tmp_path: Path, groups: str, files: dict[str, str], used: int | None
) -> None:
    files = files | {"a/cpu.stat": "usage_usec 1500000", "cpuacct/a/cpuacct.usage": "1500000000"}
    files |= {"a/cgroup.procs": "", "cpuacct/a/cgroup.procs": "", "../proc/7/cgroup": groups}
    for name, text in files.items():
        (tmp_path / "cgroups" / name).resolve().parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroups" / name).resolve().write_text(text)
    look: dict[str, Any] = {"__name__": "look"}
    exec((Path(watching.__file__).parent / "look.py").read_text(), look)  # noqa: S102 as it runs on a host
    look |= {"Path": lambda path: tmp_path / path.lstrip("/"), "CGROUPS": tmp_path / "cgroups"}
    look |= {"inspect": lambda _container: {"State": {"Pid": 7}}, "cgroup_limits": lambda _pid: (None, None)}
    found = look["client"]({"Id": "abc"})
    assert (found["memory"], found["cpu_seconds"]) == (used, 1.5)


def test_what_a_client_uses_is_shown_against_its_limits() -> None:
    text = "\n".join(lines(view([client(1, "trains")]), 120, None))
    assert "round 7/9" in text and "0.8312" in text
    assert "0.48 of 0.5  96%" in text and "400 of 640  62%" in text and "36.5" in text


@pytest.mark.parametrize("height", [20, 24, 60])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_forty_clients_fit_on_any_terminal(width: int, height: int) -> None:
    clients = [client(number) for number in range(40)]
    clients[39].state = "failed"
    shown = lines(view(clients), width, height)
    assert len(shown) <= height
    assert any("pi-39" in line for line in shown), "who failed is shown before who waits"
    assert any("more: " in line for line in shown) == (height < 60)


def test_who_needs_a_look_is_shown_first() -> None:
    clients = [client(1, "done"), client(2, "stopped"), client(3, "waits"), client(4, "trains")]
    shown, hidden = fitting(clients, 2)
    assert [each.name for each in shown] == ["pi-2", "pi-4"]
    assert [each.name for each in hidden] == ["pi-1", "pi-3"]
    assert fitting(clients, None) == (clients, [])


def test_without_a_terminal_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def views() -> Iterator[View]:
        yield view([client(1, "waits")], rounds=0)
        yield view([client(1, "trains")], rounds=0)
        yield view([client(1, "trains")], rounds=1)
        yield replace(view([client(1, "trains")], rounds=1), conditions=[EVENT])
        yield replace(view([client(1, "done")], "finished", rounds=1), conditions=[EVENT])

    last = _tell(views())
    assert last and last.ended
    assert capsys.readouterr().out.splitlines() == [
        "20260101-100000-a is running",
        "pi-1 waits",
        "pi-1 trains",
        "round 1/9  accuracy 0.8312  loss 0.47  37.4 s  clients 1 ok, 0 failed",
        "30 s: pi-1  throttle cpus 0.25  4 ms late",
        "20260101-100000-a is finished",
        "pi-1 done",
    ]
