"""The driver of a timeline: steps at their moments, whatever the devices do, and all put back at the end."""

import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from test_conditions import DEVICE, NOTHING, SHAPE, Net, net, root_alone

from fltestbed import events, inventory
from fltestbed.conditions import Action, Outcome, Sessions, Target
from fltestbed.errors import PreflightError
from fltestbed.timeline import conduct
from fltestbed.timeline.driver import Driver, Row
from fltestbed.timeline.ledger import Ledger, line
from fltestbed.timeline.schedule import Step, When

__all__ = ["net"]  # a fixture
LOCAL = {"ansible_connection": "local", "ansible_user": "root", "ansible_become": False}
CLIENTS = {"pi-1": ["pi-1"], "pi-2": ["pi-2-1", "pi-2-2"]}


class Devices:
    """Devices in memory: what was applied, and what is in force until it is put back."""

    def __init__(self, takes: float = 0.0, broken: Sequence[str] = ()) -> None:
        self.takes, self.broken = takes, list(broken)
        self.applied: list[tuple[str, str, Sequence[str]]] = []
        self.closed = False
        self.at_work: dict[str, int] = {}

    def apply(self, device: str, action: Action, clients: Sequence[str] = ()) -> Outcome:
        assert not self.closed
        self.at_work[device] = self.at_work.get(device, 0) + 1
        assert self.at_work[device] == 1, "one action of a device at a time"
        began = time.time()
        time.sleep(self.takes)
        self.at_work[device] = 0
        if device in self.broken:
            return Outcome(began, time.time(), False, "no answer: no route")
        self.applied.append((device, action.kind, clients))
        return Outcome(began, time.time(), True, "done")

    def close(self) -> dict[str, Outcome]:
        self.closed = True
        return {device: Outcome(time.time(), time.time(), True, "put back") for device in CLIENTS}


class Book:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.begun = 0
        self._news = threading.Condition()

    def begin(self) -> None:
        self.begun += 1

    def write(self, row: Row) -> None:
        with self._news:
            self.rows.append(row)
            self._news.notify()

    def wait(self, count: int) -> list[Row]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.rows) >= count, 30), self.rows
            return list(self.rows)


def step(
    number: int, when: When, device: str, kind: str, ends: int | None = None, clients: tuple[str, ...] = ()
) -> Step:
    parameters = {"cpus": 0.5} if kind == "throttle" else {}
    return Step(number, "timeline.events.0", when, Target(device, clients), Action(kind, parameters), ends)


def ended(number: int, accuracy: float | None = None, seconds: float = 1.0) -> dict[str, Any]:
    """Return what testbed_run says when a round has ended just now."""
    row = {"round": number, "seconds": seconds, "server_accuracy": accuracy}
    return {"round": row, "age": 0.0, "now": time.time()}


def kinds(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    return [(row["device"], row["action"], row["outcome"]) for row in rows]


def test_seconds_count_from_the_first_round(tmp_path: Path) -> None:
    devices, book = Devices(), Book()
    steps = [
        step(1, When("seconds", 0.5), "pi-1", "throttle"),
        step(2, When("seconds", 0.6), "pi-2", "kill"),
        step(3, When("seconds", 0.9), "pi-1", "unthrottle", ends=1),
    ]
    with Driver(steps, devices, CLIENTS, book) as driver:
        time.sleep(0.3)
        assert not book.begun and not book.rows
        server = time.time() + 1000  # its clock is ahead
        driver.hear({"round": None, "age": 0.2, "now": server})
        rows = book.wait(3)
    assert kinds(rows) == [("pi-1", "throttle", "ok"), ("pi-2", "kill", "ok"), ("pi-1", "unthrottle", "ok")]
    planned = [datetime.fromisoformat(row["planned"]).timestamp() - (server - 0.2) for row in rows]
    assert planned == pytest.approx([0.5, 0.6, 0.9], abs=0.01)
    for row in rows:
        late = (datetime.fromisoformat(row["time"]) - datetime.fromisoformat(row["planned"])).total_seconds()
        assert 0 <= row["error_seconds"] < 5 and late == pytest.approx(row["error_seconds"], abs=0.01)
    assert [row["ends"] for row in rows] == [None, None, 1]
    assert devices.closed and book.begun == 1


def test_rounds_and_accuracies_are_heard_of(tmp_path: Path) -> None:
    devices, book = Devices(), Book()
    steps = [
        step(1, When("round", 1), "pi-1", "throttle"),
        step(2, When("round", 3), "pi-1", "unthrottle", ends=1),
        step(3, When("accuracy", 0.6), "pi-2", "kill"),
        step(4, When("accuracy", 0.6, "1 round"), "pi-2", "rejoin", ends=3),
        step(5, When("round", 2, 0.4), "pi-2", "throttle", clients=("pi-2-1",)),
        step(6, When("accuracy", 0.9), "pi-1", "kill"),
    ]
    with Driver(steps, devices, CLIENTS, book) as driver:
        driver.hear({"run": {}})  # of another state of the module
        driver.hear({"round": None, "age": None, "now": 0.0})
        assert not book.begun
        driver.hear(ended(1, accuracy=None, seconds=2.0))  # the start of the first round was not heard of
        assert kinds(book.wait(2)) == [("pi-1", "throttle", "ok"), ("pi-2", "throttle", "ok")]
        assert [row["error_seconds"] >= least for row, least in zip(book.rows, (2, 0), strict=True)] == [True, True]
        driver.hear(ended(2, accuracy=0.6))
        assert kinds(book.wait(4))[2:] == [("pi-1", "unthrottle", "ok"), ("pi-2", "kill", "ok")] or kinds(book.rows)[
            2:
        ] == [("pi-2", "kill", "ok"), ("pi-1", "unthrottle", "ok")]
        driver.hear(ended(3, accuracy=0.7))
        assert kinds(book.wait(5))[4:] == [("pi-2", "rejoin", "ok")]
    assert devices.applied[1] == ("pi-2", "throttle", ("pi-2-1",))
    assert kinds(book.rows)[5:] == [
        ("pi-1", "kill", "not due"),
        ("pi-1", "restore", "ok"),
        ("pi-2", "restore", "ok"),
    ]
    assert book.rows[5]["text"] == "kill: the run ended before accuracy 0.9"


def test_a_slow_device_does_not_keep_the_others_waiting() -> None:
    devices, book = Devices(takes=1.0), Book()
    steps = [
        step(number, When("seconds", 0.0), device, "throttle")
        for number, device in enumerate(["pi-1", "pi-1", "pi-2"], start=1)
    ]
    with Driver(steps, devices, CLIENTS, book) as driver:
        driver.begin()
        late = {row["step"]: row["error_seconds"] for row in book.wait(3)}
    assert late[2] >= 1 > late[1]
    assert late[3] < 1


def test_what_makes_no_sense_any_more_is_skipped() -> None:
    devices, book = Devices(), Book()
    steps = [
        step(1, When("seconds", 0.0), "pi-2", "kill", clients=("pi-2-1",)),
        step(2, When("round", 1), "pi-2", "pause"),
        step(3, When("round", 1), "pi-1", "rejoin"),
        step(4, When("seconds", 0.3), "pi-2", "rejoin"),
        step(5, When("seconds", 0.6), "pi-2", "rejoin", ends=1, clients=("pi-2-1",)),
    ]
    with Driver(steps, devices, CLIENTS, book) as driver:
        driver.begin()
        rows = {row["step"]: row for row in book.wait(5)}
    assert {number: row["outcome"] for number, row in rows.items()} == {
        1: "ok", 2: "skipped", 3: "skipped", 4: "ok", 5: "skipped",
    }  # fmt: skip
    assert rows[2]["text"] == "pause: it is cut off already, by step 1"
    assert rows[3]["text"] == "rejoin: it is not cut off"
    assert rows[5]["text"] == "rejoin: what it would put back is not in force"
    assert rows[5]["error_seconds"] is None


def test_what_failed_is_put_back_all_the_same() -> None:
    devices, book = Devices(broken=["pi-1"]), Book()
    steps = [
        step(1, When("seconds", 0.0), "pi-1", "kill"),
        step(2, When("seconds", 0.2), "pi-1", "pause"),
        step(3, When("seconds", 0.6), "pi-1", "rejoin"),
        step(4, When("seconds", 0.8), "pi-2", "throttle"),
    ]
    with Driver(steps, devices, CLIENTS, book) as driver:
        driver.begin()
        book.wait(2)
        devices.broken.clear()
        rows = book.wait(4)
    assert kinds(rows)[:4] == [
        ("pi-1", "kill", "failed"),
        ("pi-1", "pause", "failed"),
        ("pi-1", "rejoin", "ok"),
        ("pi-2", "throttle", "ok"),
    ]
    assert rows[0]["text"] == "kill: no answer: no route"


def test_an_end_in_the_middle_of_an_action_waits_for_it_and_does_no_more() -> None:
    devices, book = Devices(takes=0.6), Book()
    steps = [step(number, When("seconds", 0.0), "pi-1", "throttle") for number in (1, 2)]
    steps.append(step(3, When("seconds", 600), "pi-1", "unthrottle", ends=1))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Driver(steps, devices, CLIENTS, book) as driver:
        driver.begin()
        time.sleep(0.2)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 20
    assert kinds(book.rows) == [("pi-1", "throttle", "ok"), ("pi-1", "throttle", "skipped"), ("pi-1", "restore", "ok")]
    assert devices.applied == [("pi-1", "throttle", ())]


@root_alone
def test_a_schedule_changes_a_kernel_and_its_end_puts_all_back(net: Net) -> None:
    """True sessions, tc and iptables, in a network of their own."""
    book, seen = Book(), []
    steps = [
        Step(1, "timeline.events.0", When("seconds", 0.5), Target("here"), SHAPE),
        Step(2, "timeline.events.1", When("seconds", 0.5), Target("here"), Action("partition")),
        Step(3, "timeline.events.0", When("seconds", 2), Target("here"), Action("unshape"), ends=1),
        Step(4, "timeline.events.2", When("round", 2), Target("here"), SHAPE),
        Step(5, "timeline.events.3", When("seconds", 600), Target("here"), Action("rejoin")),
    ]
    with Sessions(DEVICE, ["here"]) as sessions, Driver(steps, sessions, {"here": ["here"]}, book) as driver:
        driver.begin()
        for count in (2, 3):
            book.wait(count)
            seen.append(net.changed())
        driver.hear(ended(1))
        book.wait(4)
        seen.append(net.changed())
    assert seen == [
        dict.fromkeys(NOTHING, True),
        NOTHING | {"partition": True, "state": True},
        dict.fromkeys(NOTHING, True),
    ]
    assert net.changed() == NOTHING
    assert [(row["action"], row["outcome"]) for row in book.rows] == [
        ("shape", "ok"),
        ("partition", "ok"),
        ("unshape", "ok"),
        ("shape", "ok"),
        ("rejoin", "not due"),
        ("restore", "ok"),
    ]
    assert all(-0.5 < row["error_seconds"] < 20 for row in book.rows if row["outcome"] == "ok")
    print("late, s:", [row["error_seconds"] for row in book.rows])


def lab(folder: Path) -> inventory.Testbed:
    """A testbed whose server and one device are this machine, and another that does not answer."""
    return inventory.Testbed(
        name="no-such-lab",
        path=folder,
        server=inventory.Host("server", LOCAL),
        devices=(inventory.Host("pi-1", LOCAL), inventory.Host("pi-2", {"ansible_host": "host.invalid"})),
        clients=tuple(
            {"device": device, "client": client, "cpus": None, "memory": None, "settings": {}}
            for device, clients in CLIENTS.items()
            for client in clients
        ),
        root=str(folder / "root"),
    )


def test_true_sessions_survive_devices_that_refuse_and_that_do_not_answer(tmp_path: Path) -> None:
    (tmp_path / "root" / "submitted").mkdir(parents=True)
    said: list[str] = []
    steps = [
        step(1, When("seconds", 0.0), "pi-1", "kill"),
        step(2, When("seconds", 0.0), "pi-2", "kill"),
        step(3, When("seconds", 0.5), "pi-1", "rejoin"),
        step(4, When("round", 2), "pi-1", "kill"),
    ]
    run = tmp_path / "runs" / "r1"
    with conduct.conduct(steps, lab(tmp_path), run, said.append) as driver:
        assert "pi-2 does not answer" in said[0]
        assert not run.exists()
        driver.hear({"round": None, "age": 0.0, "now": time.time()})
        wait_for(lambda: len(events_of(run)) == 3)
    rows = events_of(run)
    assert [json.loads(row)["step"] for row in (run / "timeline.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    by_step = {row["step"]: row for row in rows}
    refusal = r"there is no container of a client here|no Docker engine answers"
    assert by_step[1]["outcome"] == "failed" and re.search(refusal, by_step[1]["text"])
    assert by_step[2]["outcome"] == "failed" and "no answer" in by_step[2]["text"]
    assert by_step[3]["outcome"] == "ok"
    assert by_step[4]["outcome"] == "not due"
    assert said[1:] == [line(row) for row in rows]
    copy = tmp_path / "root" / "submitted" / "r1.conditions"
    wait_for(lambda: copy.read_text() == (run / "events.jsonl").read_text())


def events_of(run: Path) -> list[Row]:
    file = run / "events.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def wait_for(look: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not look():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_device_that_cannot_do_it_is_refused_before_the_run(tmp_path: Path) -> None:
    steps = [step(1, When("seconds", 0.0), "pi-1", "throttle"), step(2, When("seconds", 0.0), "pi-2", "throttle")]
    with (
        pytest.raises(PreflightError, match="1 of 2 devices cannot do") as caught,
        conduct.conduct(steps, lab(tmp_path), tmp_path / "r1", lambda text: None),
    ):
        pytest.fail("it began")
    assert list(caught.value.hosts) == ["pi-1"]
    assert caught.value.hosts["pi-1"].task == "timeline.events.0: throttle cpus 0.5"


def test_a_sudo_that_wants_a_password_is_told_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LOGNAME", "pi")
    here = inventory.Host("pi-1", {"ansible_connection": "local"})
    testbed = dataclasses.replace(lab(tmp_path), devices=(here,))
    with (
        pytest.raises(PreflightError, match="sudo that asks for no password") as caught,
        conduct.conduct([step(1, When("seconds", 0.0), "pi-1", "kill")], testbed, tmp_path / "r1", print),
    ):
        pytest.fail("it began")
    assert list(caught.value.hosts) == ["pi-1"]


def test_the_end_of_a_run_keeps_its_timeline_among_the_events(tmp_path: Path) -> None:
    run = {"started": "2026-01-01T00:00:00.000+00:00", "updated": "2026-01-01T00:01:00.000+00:00"}
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "reason": None} | run))
    testbed = lab(tmp_path)
    ledger = Ledger([], testbed, tmp_path, lambda text: None)
    row: Row = {"time": "2026-01-01T00:00:30.000+00:00", "kind": "timeline", "device": "pi-1", "client": None}
    row |= {"text": "kill", "when": "30 s", "error_seconds": 0.002, "outcome": "ok"}
    ledger.write(row)
    ledger.close()
    for _ in range(2):  # also when it is written anew
        events.save(events.events(tmp_path, None), tmp_path)
        found = events_of(tmp_path)
        assert [each["kind"] for each in found] == ["start", "timeline", "end"]
        assert found[1] == row
    assert line(row) == "30 s: pi-1  kill  2 ms late"
