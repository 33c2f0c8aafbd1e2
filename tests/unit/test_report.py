"""What a report says of a run, and of one that lacks things too."""

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import run_folder
import yaml

from fltestbed import inventory, page, report, results
from fltestbed.errors import ResultsError
from fltestbed.experiment import Experiment
from fltestbed.experiment import load as load_experiment
from fltestbed.page import Figure, Table, Text
from fltestbed.paths import find_run

SECTIONS = {"accuracy", "timeline", "stragglers", "resources", "failures", "setup", "monitoring", "again"}


class Reader(HTMLParser):
    """Takes from a page what it would load, its scripts, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.tags: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data") and not (value or "").startswith(("#", "data:")):
                self.loaded.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.add(value or "")

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(folder: Path) -> Reader:
    return Reader(page.html(report.build(results.load(folder))))


def blocks(folder: Path) -> dict[str, Table | Figure]:
    made = report.build(results.load(folder))
    return {block.name: block for section in made.sections for block in section.blocks if not isinstance(block, Text)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_folder.copy(tmp_path / "runs")


@pytest.fixture
def measured(folder: Path) -> Path:
    run_folder.add_hardware(folder)
    return folder


def test_when_a_clients_process_was_started_is_a_time(folder: Path) -> None:
    run_folder.write_rows(
        folder, "clients.jsonl", [{**row, "app_start": 1.8e9} for row in run_folder.rows(folder, "clients.jsonl")]
    )
    table = blocks(folder)["clients"]
    assert isinstance(table, Table)
    assert f"{table.frame['app_start'][0]:%Y-%m-%d %H:%M}" == "2027-01-15 08:00"


def test_a_report_is_one_file_that_loads_nothing_with_csv_and_png_beside_it(measured: Path) -> None:
    written = report.write(measured)
    assert written == measured / "report" / "report.html"
    found = Reader(written.read_text(encoding="utf-8"))
    assert found.loaded == []
    assert found.ids >= SECTIONS
    beside = {path.name for path in written.parent.iterdir()} - {"report.html", "experiment.yml"}
    everything = blocks(measured)
    charts = {name for name, block in everything.items() if isinstance(block, Figure)}
    assert beside == {f"{name}.csv" for name in everything} | {f"{name}.png" for name in charts}
    assert {"timeline", "accuracy_time", "stragglers", "phases", "memory", "cpu", "energy", "cpu_over_time"} <= charts
    for name in charts:
        assert (written.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    with (written.parent / "rounds.csv").open(encoding="utf-8", newline="") as file:
        accuracies = [float(row["server_accuracy"]) for row in csv.DictReader(file)]
    assert accuracies == [row["server_accuracy"] for row in run_folder.rows(measured, "rounds.jsonl")]
    assert "pandas" not in found.text and "nan" not in found.text.lower().split()


def test_a_report_is_made_again_over_the_last_one(folder: Path) -> None:
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text("old", encoding="utf-8")
    assert "final accuracy" in report.write(folder).read_text(encoding="utf-8")


def test_the_experiment_beside_the_report_is_the_one_that_ran(folder: Path) -> None:
    report.write(folder)
    again = load_experiment(folder / "report" / "experiment.yml")
    ran = json.loads((folder / "lock.json").read_text(encoding="utf-8"))["experiment"]
    assert again == Experiment.model_validate(ran), "keys that came later have their defaults"
    assert yaml.safe_load((folder / "report" / "experiment.yml").read_text(encoding="utf-8"))["rounds"] == 3


def test_a_run_whose_experiment_has_a_key_that_has_gone_since_is_reported(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
    lock["experiment"]["strategy"] = {"name": "fedadam", "eta": 0.1, "eta_l": 0.1}
    (folder / "lock.json").write_text(json.dumps(lock), encoding="utf-8")
    assert "fltestbed run runs/" in read(folder).text


def test_tiles_and_failures_are_those_of_the_run(folder: Path) -> None:
    text = read(folder).text
    for words in (
        "status finished",
        "final accuracy 0.8282",
        "rounds 3 of 3",
        "time 1 min 2 s",
        "clients 3 on 3 devices",
        "failures 1 of 9 replies",
        "models moved 7.2 MB",
        "went offline in the middle of the round",
    ):
        assert words in text, words


def test_the_straggler_is_who_kept_the_others_waiting(folder: Path) -> None:
    ranks = report.ranking(results.load(folder)).set_index("client")
    assert list(ranks.index) == ["pi-3", "pi-4", "laptop"]
    ends: dict[Any, list[float]] = {}
    for row in run_folder.rows(folder, "clients.jsonl"):
        second = float(str(row["end"])[17:23]) + 60 * int(str(row["end"])[14:16])
        ends.setdefault(row["round"], []).append(second)
    held_up = sum(sorted(seconds)[-1] - sorted(seconds)[-2] for seconds in ends.values())
    assert ranks.loc["pi-3", "held_up_seconds"] == pytest.approx(held_up)
    assert ranks.loc["pi-3", "rounds_last"] == 3
    assert ranks.loc["pi-4", ["rounds_ok", "rounds_failed"]].tolist() == [2, 1]


def test_phases_fill_each_round_without_gap(measured: Path) -> None:
    frame = report.phases(results.load(measured))
    for (client, number), group in frame.groupby(["client", "round"]):
        group = group.sort_values("begin")
        assert group["begin"].iloc[1:].tolist() == pytest.approx(group["until"].iloc[:-1].tolist()), (client, number)
        split = {"waiting", "download", "training", "upload", "rest, until the reply", "waits for the others"}
        failed = {"failed", "waits for the others"}
        assert set(group["phase"]) == (failed if (client, number) == ("pi-4", 2) else split)


def test_limits_are_those_asked_for_and_those_of_the_kernel(folder: Path) -> None:
    lock = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
    lock["hosts"]["pi-3"]["containers"][0]["cpus"] = 0.25
    (folder / "lock.json").write_text(json.dumps(lock), encoding="utf-8")
    limits = results.load(folder).limits.set_index("client")
    assert limits.loc["pi-3", ["cpus_asked", "cpus", "memory"]].tolist() == [0.5, 0.25, 640 * 2**20]
    assert report.usage(results.load(folder)).set_index("client").loc["pi-3", "cpus"] == 0.25


def test_what_hardware_says_is_joined_and_named(measured: Path) -> None:
    used = report.usage(results.load(measured)).set_index("client")
    assert used.loc["laptop", "energy_joules"] == 90.0
    assert used.loc["pi-4", "out_of_memory"] == 1
    text = read(measured).text
    assert "by a model, ± 25%" in text
    assert "killed: no memory" in text
    assert "% of a core" in text and "Cost of monitoring" in text


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "run.json").write_text("{}", encoding="utf-8")


def failed_at_once(folder: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl"):
        (folder / name).unlink()
    record = {"run": folder.name, "status": "failed", "reason": "2 of 3 clients were online", "round": 0, "rounds": 3}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def own_app(folder: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl", "experiment.json"):
        (folder / name).unlink()
    lock = json.loads((folder / "lock.json").read_text(encoding="utf-8")) | {"experiment": None, "run_config": {"c": 1}}
    for name in ("partitions", "partition_set", "test_set"):
        lock[name] = None
    (folder / "lock.json").write_text(json.dumps(lock), encoding="utf-8")


def diverged(folder: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl"):
        losses = dict.fromkeys(("server_loss", "train_loss", "loss"))
        run_folder.write_rows(folder, name, [row | losses for row in run_folder.rows(folder, name)])


def one_round(folder: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl"):
        run_folder.write_rows(folder, name, [row for row in run_folder.rows(folder, name) if row["round"] == 1])


def one_client(folder: Path) -> None:
    found = [row for row in run_folder.rows(folder, "clients.jsonl") if row["client"] == "pi-3"]
    run_folder.write_rows(folder, "clients.jsonl", found)


def timeless(folder: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl"):
        found = run_folder.rows(folder, name)
        run_folder.write_rows(folder, name, [row | {"start": None, "end": None} for row in found])
    (folder / "run.json").write_text('{"status": "finished"}', encoding="utf-8")


def without_keys(folder: Path) -> None:
    for name, keys in (
        ("rounds.jsonl", ["round", "server_accuracy"]),
        ("clients.jsonl", ["client", "device", "status"]),
    ):
        found = [{key: row[key] for key in keys} for row in run_folder.rows(folder, name)]
        run_folder.write_rows(folder, name, found)


def nobody_replied(folder: Path) -> None:
    lost = {"status": "failed", "failure": "gone", "accuracy": None, "train_seconds": None, "peak_memory_mb": None}
    run_folder.write_rows(folder, "clients.jsonl", [row | lost for row in run_folder.rows(folder, "clients.jsonl")])


def cut_off(folder: Path) -> None:
    path = folder / "clients.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    (folder / "lock.json").write_text("{", encoding="utf-8")
    (folder / "series.parquet").write_bytes(b"PAR1")


def only_series(folder: Path) -> None:
    run_folder.add_hardware(folder)
    for name in ("rounds.jsonl", "clients.jsonl", "resources.parquet"):
        (folder / name).unlink()


LACKS = {
    "rounds": (without("rounds.jsonl"), "no finished round: it is finished"),
    "clients": (without("clients.jsonl"), "final accuracy 0.8282"),
    "lock": (without("lock.json"), "There is no lock.json"),
    "experiment": (without("experiment.json"), "final accuracy 0.8282"),
    "record": (without("run.json"), "status unknown"),
    "nothing": (nothing, "nothing to repeat it by"),
    "failed-at-once": (failed_at_once, "it is failed, as 2 of 3 clients were online"),
    "own-app": (own_app, "reports no rounds to fltestbed"),
    "diverged": (diverged, "none: it diverged"),
    "one-round": (one_round, "rounds 1 of 3"),
    "one-client": (one_client, "one client alone"),
    "timeless": (timeless, "final accuracy 0.8282"),
    "without-keys": (without_keys, "final accuracy 0.8282"),
    "nobody-replied": (nobody_replied, "failures 9 of 9 replies"),
    "cut-off": (cut_off, "clients.jsonl: line 9 is not a row"),
    "only-series": (only_series, "Temperature of each device"),
}


@pytest.mark.parametrize("lack", LACKS)
def test_what_is_not_there_is_said(folder: Path, lack: str) -> None:
    change, words = LACKS[lack]
    change(folder)
    found = Reader(report.write(folder).read_text(encoding="utf-8"))
    assert found.ids >= SECTIONS
    assert words in found.text
    assert not re.search(r"\b(nan|NaT|None|undefined)\b", found.text)


def test_names_are_text_wherever_they_stand(folder: Path) -> None:
    evil = "</script><script>alert(1)</script>\"'&ä b"
    for name in ("clients.jsonl", "lock.json", "experiment.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace('"pi-3"', json.dumps(evil)), encoding="utf-8")
    honest = read(run_folder.copy(folder.parent, "honest"))
    found = read(folder)
    assert found.tags.count("script") == honest.tags.count("script")
    assert evil in "".join(found.words)


def test_fifty_clients_and_many_rounds_fit(folder: Path) -> None:
    clients, rounds = run_folder.rows(folder, "clients.jsonl"), run_folder.rows(folder, "rounds.jsonl")
    many = [
        row | {"client": f"c{number:02}", "device": f"d{number:02}", "round": number_of_round}
        for number in range(50)
        for number_of_round in range(1, 101)
        for row in clients[:1]
    ]
    run_folder.write_rows(folder, "clients.jsonl", many)
    run_folder.write_rows(folder, "rounds.jsonl", [rounds[0] | {"round": number} for number in range(1, 101)])
    found = blocks(folder)
    drawn = found["timeline"]
    assert isinstance(drawn, Figure)
    assert len(drawn.frame) == 10_000
    assert len(page.html(report.build(results.load(folder)))) < 12_000_000


def test_a_run_is_found_by_path_by_name_and_as_the_latest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder.copy(folder.parent, "20260101-000000-old")
    (folder.parent / "zzz-notes").mkdir()
    monkeypatch.chdir(folder.parents[1])
    for name in (str(folder), folder.name, f"runs/{folder.name}", f"runs/{folder.name}/", ""):
        assert find_run(name) == folder
    with pytest.raises(ResultsError, match="there is no run '20261122-050054-fault'") as caught:
        find_run("20261122-050054-fault")
    assert folder.name in caught.value.hint
    with pytest.raises(ResultsError, match="no run's folder"):
        find_run("runs/zzz-notes")
    monkeypatch.chdir(folder)
    with pytest.raises(ResultsError, match="there is no run in"):
        find_run("")


def fltestbed(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from fltestbed.cli import main; main()", *arguments],
        cwd=cwd,
        env=os.environ | {"PWD": str(cwd)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_command_prints_where_the_report_is(folder: Path) -> None:
    done = fltestbed("report", cwd=folder.parents[1])
    assert done.stdout.strip() == str(folder / "report" / "report.html")
    assert Path(done.stdout.strip()).exists()
    assert "hint:" in fltestbed("report", "nope", cwd=folder.parents[1], code=3).stderr


def test_a_run_is_not_lost_for_want_of_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report").write_text("in the way", encoding="utf-8")
    host = inventory.Host("server")
    testbed = inventory.Testbed("lab", folder, host, (host,), (), "/opt/fltestbed/lab")
    importlib.import_module("fltestbed.cli.run")._conclude(testbed, folder)
    said = capsys.readouterr().err
    assert "no figures of the devices: no host is in group monitoring" in said
    assert "warning: no report: FileExistsError" in said


def test_help_and_version_do_without_the_slow_libraries() -> None:
    script = (
        "import sys, fltestbed.cli\n"
        "print(sorted({'altair', 'pandas', 'pyarrow', 'vl_convert', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def add_timeline(folder: Path) -> None:
    """Add what a timeline would have done to the real run, by its third round."""
    start = datetime.fromisoformat(str(run_folder.rows(folder, "rounds.jsonl")[0]["start"]))

    def event(second: float, device: str, action: str, text: str, **more: Any) -> dict[str, object]:
        at = start + timedelta(seconds=second)
        row = {"time": at.isoformat(), "kind": "timeline", "device": device, "client": None, "text": text}
        row |= {"action": action, "outcome": "ok", "planned": (at - timedelta(seconds=0.004)).isoformat(), "step": 1}
        return row | {"when": f"{second:g} s", "error_seconds": 0.004, "took_seconds": 0.1, "ends": None} | more

    rows = [
        event(5, "pi-3", "throttle", "throttle cpus 0.25"),
        event(8, "pi-4", "kill", "kill"),
        event(30, "pi-3", "unthrottle", "unthrottle", ends=1, error_seconds=1.5),
        event(31, "pi-4", "rejoin", "rejoin", when="round 2"),
        event(40, "pi-3", "shape", "shape rate_up 2mbit"),
        event(41, "laptop", "pause", "pause: no answer", outcome="failed"),
        event(90, "pi-3", "restore", "put back: network shaped to 2 mbit up", step=None, when="end"),
        event(90, "laptop", "kill", "kill: not due", outcome="not due", planned=None, error_seconds=None),
    ]
    run_folder.write_rows(folder, "events.jsonl", rows)


def test_a_report_shows_what_the_timeline_did_and_how_late(folder: Path) -> None:
    assert "conditions" not in read(folder).ids
    add_timeline(folder)
    run = results.load(folder)
    assert run.notes == []
    found = report.spells(run)
    assert found.drop(columns="text").round(2).to_dict("records") == [
        {"device": "pi-3", "action": "throttle", "outcome": "ok", "begin": 5, "until": 30},
        {"device": "pi-4", "action": "kill", "outcome": "ok", "begin": 8, "until": 31},
        {"device": "pi-3", "action": "shape", "outcome": "ok", "begin": 40, "until": 90},
        {"device": "laptop", "action": "pause", "outcome": "failed", "begin": 41, "until": 41},
        {"device": "laptop", "action": "kill", "outcome": "not due", "begin": 90, "until": 90},
    ]
    shown = read(folder)
    assert shown.ids >= {"conditions"}
    assert "6 of 8 events of the timeline were done." in shown.text
    assert "due at a second came 4 ms late, 1.5 s at most" in shown.text
    (section,) = (section for section in report.build(run).sections if section.name == "conditions")
    by_name = {block.name: block for block in section.blocks if isinstance(block, Table | Figure)}
    during = dict(zip(by_name["round_times"].frame["round"], by_name["round_times"].frame["conditions"], strict=True))
    assert during == {
        1: "pi-3 throttle cpus 0.25; pi-4 kill",
        2: "pi-3 throttle cpus 0.25; pi-4 kill; pi-3 shape rate_up 2mbit",
        3: "pi-3 shape rate_up 2mbit",
    }
    assert len(by_name["timeline_events"].frame) == 8
    report.write(folder)
    assert {"conditions.png", "round_times.png", "timeline_events.csv"} <= {
        file.name for file in (folder / "report").iterdir()
    }
