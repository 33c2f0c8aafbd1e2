"""testbed_run, on a run's folder as the ServerApp leaves it; what needs no engine."""

import json
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

testbed_run = load("modules", "testbed_run")
ROUND = {"round": 2, "server_accuracy": 0.5, "end": "2026-01-01T00:00:10.000+00:00"}
CLIENTS = [{"round": number, "client": client} for number in (1, 2) for client in ("pi-1", "pi-2")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    (tmp_path / "submitted").mkdir()
    return folder


def flower_id(folder: Path) -> Path:
    return folder.parents[1] / "submitted" / folder.name


def call(folder: Path, state: str, *, check: bool = False, **params: Any) -> dict[str, Any]:
    params = {
        "root": str(folder.parents[1]),
        "container": "no-such-container",
        "name": folder.name,
        "state": state,
    } | params
    return run(testbed_run, check=check, **params)


def write(folder: Path, name: str, *rows: dict[str, Any], end: str = "\n") -> None:
    with (folder / name).open("a") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + end)


def record(folder: Path, status: str, reason: str | None = None) -> None:
    (folder / "run.json").write_text(json.dumps({"status": status, "reason": reason, "round": 1, "rounds": 5}))


def test_follow_returns_the_row_and_the_clients_when_they_appear(folder: Path) -> None:
    record(folder, "running")
    write(folder, "rounds.jsonl", {"round": 1})

    def serverapp() -> None:
        time.sleep(0.4)
        write(folder, "clients.jsonl", *CLIENTS)
        write(folder, "rounds.jsonl", ROUND)

    writer = threading.Thread(target=serverapp)
    began = time.monotonic()
    writer.start()
    answer = call(folder, "followed", round=2, timeout=20)
    writer.join()
    assert 0.3 < time.monotonic() - began < 5
    assert answer["round"] == ROUND
    assert answer["clients"] == [row for row in CLIENTS if row["round"] == 2]
    assert (answer["changed"], answer["run"]["status"]) == (False, "running")


def test_follow_does_not_take_half_a_line(folder: Path) -> None:
    record(folder, "running")
    write(folder, "rounds.jsonl", ROUND, end="")
    assert call(folder, "followed", round=2, timeout=0)["failed"]
    write(folder, "rounds.jsonl")
    assert call(folder, "followed", round=2, timeout=0)["round"] == ROUND


@pytest.mark.parametrize("status", ["finished", "failed", "stopped"])
def test_follow_returns_at_once_when_the_run_has_ended(folder: Path, status: str) -> None:
    record(folder, status, "because")
    write(folder, "rounds.jsonl", {"round": 1})
    answer = call(folder, "followed", round=2, timeout=600)
    assert (answer["round"], answer["clients"]) == (None, [])
    assert (answer["run"]["status"], answer["run"]["reason"]) == (status, "because")


def test_follow_gives_up_in_time_and_says_that_the_run_goes_on(folder: Path) -> None:
    record(folder, "running")
    began = time.monotonic()
    answer = call(folder, "followed", round=1, timeout=1)
    assert time.monotonic() - began < 5
    assert answer["failed"]
    assert "round 1" in answer["msg"] and "1 s" in answer["msg"] and "fltestbed stop" in answer["msg"]


def test_follow_wants_a_round(folder: Path) -> None:
    assert "round" in call(folder, "followed")["msg"]


def test_a_run_that_was_submitted_is_left_alone(folder: Path) -> None:
    flower_id(folder).write_text("7")
    answer = call(folder, "submitted")
    assert (answer["changed"], answer["run"]["status"]) == (False, "starting")


def test_a_rehearsal_submits_nothing(folder: Path) -> None:
    assert call(folder, "submitted", check=True)["changed"]
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no Docker client to ask")
def test_a_run_that_cannot_be_submitted_is_recorded_as_failed(folder: Path) -> None:
    answer = call(folder, "submitted", plan={"run": "{{ r1 }}"})
    assert json.loads((folder / "experiment.json").read_text()) == {"run": "{{ r1 }}"}
    assert answer["failed"] and "Flower refused the app" in answer["msg"]
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not flower_id(folder).exists()


def test_links_in_the_containers_folder_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / "run.json").symlink_to(secret)
    answer = call(folder, "followed", round=1, timeout=0)
    assert answer["failed"] and "Too many levels of symbolic links" in answer["msg"]
    call(folder, "submitted")
    assert secret.read_text() == "{}"


@pytest.mark.parametrize("status", ["finished", "failed", "stopped"])
def test_a_run_that_has_ended_is_not_stopped_again(folder: Path, status: str) -> None:
    record(folder, status)
    before = (folder / "run.json").read_bytes()
    assert not call(folder, "stopped")["changed"]
    assert (folder / "run.json").read_bytes() == before


def test_stop_writes_the_last_word_where_the_run_never_reached_flower(folder: Path) -> None:
    assert call(folder, "stopped", check=True)["changed"]
    assert list(folder.iterdir()) == []
    answer = call(folder, "stopped")
    assert answer["changed"] and answer["run"]["status"] == "stopped"
    assert json.loads((folder / "run.json").read_text()) == answer["run"]
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    assert not call(folder, "stopped")["changed"]


def test_there_is_nothing_to_stop_without_a_run(folder: Path) -> None:
    folder.rmdir()
    assert not call(folder, "stopped")["changed"]


def test_follow_says_how_long_ago_the_first_round_began(folder: Path) -> None:
    record(folder, "waiting", "waiting for pi-4")
    assert call(folder, "followed", round=0, timeout=0)["failed"]
    began = datetime.now(UTC) - timedelta(seconds=5)
    running = {"status": "running", "reason": None, "round": 0, "rounds": 2, "updated": began.isoformat()}
    (folder / "run.json").write_text(json.dumps(running))
    answer = call(folder, "followed", round=0, timeout=0)
    assert (answer["round"], answer["clients"]) == (None, [])
    assert 5 <= answer["age"] < 15 and abs(answer["now"] - time.time()) < 10

    end = began + timedelta(seconds=3)
    write(folder, "rounds.jsonl", {"round": 1, "start": began.isoformat(), "end": end.isoformat()})
    record(folder, "running")  # which is written anew after each round
    assert call(folder, "followed", round=0, timeout=0)["age"] >= 5
    assert 2 <= call(folder, "followed", round=1, timeout=0)["age"] < 12


def test_follow_has_no_age_of_what_will_not_be(folder: Path) -> None:
    record(folder, "failed", "because")
    assert [call(folder, "followed", round=number, timeout=600)["age"] for number in (0, 1)] == [None, None]
