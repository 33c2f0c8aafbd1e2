"""What is said of runs side by side."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import run_folder
from test_report import Reader, fltestbed

from fltestbed import compare, page
from fltestbed.errors import ResultsError


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs: as it was, and a copy with other settings and limits that ends a round earlier and is measured."""
    first, second = run_folder.copy(tmp_path / "runs"), run_folder.copy(tmp_path / "runs", "other")
    run_folder.add_hardware(second)
    run_folder.write_rows(second, "rounds.jsonl", run_folder.rows(second, "rounds.jsonl")[:2])
    lock = json.loads((second / "lock.json").read_text(encoding="utf-8"))
    lock["experiment"]["seed"] = 7
    lock["clients"][0]["settings"]["batch_size"] = 8
    lock["hosts"]["pi-4"]["containers"][0]["memory"] = 2**29
    lock["versions"]["image"]["numpy"] = "2.3.0"
    (second / "lock.json").write_text(json.dumps(lock), encoding="utf-8")
    return [first, second]


def test_the_accuracy_is_the_highest_that_all_reach_unless_one_is_given(runs: list[Path]) -> None:
    found = compare.read(runs)
    assert compare.reached_by_all(found) == 0.73
    first, second = compare.measures(found, 0.73)
    starts = [str(row["start"]) for row in run_folder.rows(runs[0], "rounds.jsonl")]
    assert starts[0].endswith("05:01:22.867+00:00")
    assert first["seconds_to_0.73"] == second["seconds_to_0.73"] == pytest.approx(42.892)  # 05:02:05.759, the 2nd's end
    first, second = compare.measures(found, 0.8)
    assert (first["rounds_to_0.8"], second["rounds_to_0.8"]) == (3, None)


def test_costs_are_summed_and_unknown_ones_are_none(runs: list[Path]) -> None:
    first, second = compare.measures(compare.read(runs), None)
    assert first["energy_joules"] is first["cpu_seconds"] is first["network_bytes"] is None
    assert second["energy_joules"] == 240.0
    assert second["network_bytes"] == 8 * 950_000
    assert second["energy_source"] == "by a model, ± 25%"
    assert first["failures"] == 1
    assert first["model_bytes"] == sum(row["bytes"] for row in run_folder.rows(runs[0], "rounds.jsonl"))


def test_differences_are_what_was_changed_and_nothing_else(runs: list[Path]) -> None:
    found = {row["what"]: (row[runs[0].name], row["other"]) for row in compare.differences(compare.read(runs))}
    assert found == {
        "experiment.seed": ("42", "7"),
        "versions.image.numpy": ("2.2.6", "2.3.0"),
        "clients.pi-3.settings.batch_size": ("16", "8"),
        "clients.pi-4.memory": (str(float(2**30)), str(float(2**29))),
    }


def test_runs_without_anything_compare_too(runs: list[Path]) -> None:
    for path in runs[1].iterdir():
        path.unlink()
    (runs[1] / "run.json").write_text('{"status": "failed", "reason": "no client"}', encoding="utf-8")
    found = compare.read(runs)
    assert compare.reached_by_all(found) == 0.82
    assert compare.measures(found, 0.82)[1]["seconds_to_0.82"] is None
    assert any("not recorded" in row.values() for row in compare.differences(found))
    reader = Reader(page.html(compare.page(found, 0.82)))
    assert reader.loaded == []
    assert "reached 0.82 1 of 2 runs" in reader.text


def repeat(folder: Path, name: str, seed: int, *accuracies: float, status: str = "finished", **lock: Any) -> Path:
    """Copy the real run with another seed, hence other shards, and with these accuracies after its rounds."""
    made = run_folder.copy(folder, name)
    now = json.loads((made / "lock.json").read_text(encoding="utf-8"))
    now["experiment"]["seed"] = now["run_config"]["seed"] = seed
    now["partition_set"] = f"set {seed}"
    for part in now["partitions"]:
        part |= {"sha256": f"{part['client']} {seed}", "examples": part["examples"] + seed}
    (made / "lock.json").write_text(json.dumps(now | lock), encoding="utf-8")
    (made / "run.json").write_text(json.dumps({"status": status}), encoding="utf-8")
    rounds = run_folder.rows(made, "rounds.jsonl")[: len(accuracies)]
    told = [row | {"server_accuracy": accuracy} for row, accuracy in zip(rounds, accuracies, strict=True)]
    run_folder.write_rows(made, "rounds.jsonl", told)
    return made


@pytest.fixture
def repeated(tmp_path: Path) -> list[Path]:
    """Three runs with other seeds, one of other settings that was better than their mean, one that failed."""
    runs = tmp_path / "runs"
    return [
        repeat(runs, "first", 1, 0.5, 0.6, 0.80),
        repeat(runs, "failed", 4, 0.1, status="failed"),
        repeat(runs, "second", 2, 0.5, 0.81, 0.82),
        repeat(runs, "other", 3, 0.5, 0.6, 0.85, app={"name": "other", "version": "1", "sha256": "b"}),
        repeat(runs, "third", 3, 0.5, 0.6, 0.87),
    ]


def test_runs_that_differ_in_the_seed_alone_are_summarised(repeated: list[Path]) -> None:
    """Of 0.80, 0.82 and 0.87 the mean is 0.83, the deviation 0.03606; the interval is 4.303 / sqrt(3) of it wide."""
    rows = compare.repeats(compare.read(repeated), 0.82, {"first": {"labels": "even", "seed": 1}})
    assert [(row["n"], row["runs"]) for row in rows] == [(3, "first, second, third"), (1, "failed"), (1, "other")]
    half = 4.303 * 0.0360555 / sqrt(3)
    assert rows[0]["labels"] == "even" and "seed" not in rows[0]
    assert (rows[0]["accuracy_mean"], rows[0]["accuracy_sd"]) == pytest.approx((0.83, 0.0360555))
    assert (rows[0]["accuracy_low"], rows[0]["accuracy_high"]) == pytest.approx((0.83 - half, 0.83 + half), abs=1e-5)
    assert rows[0]["reached_0.82"] == 2
    assert rows[0]["seconds_to_0.82_mean"] == pytest.approx(61.62)
    assert rows[0]["seconds_to_0.82_sd"] == 0
    assert (rows[2]["accuracy_mean"], rows[2]["accuracy_sd"], rows[2]["accuracy_low"]) == (0.85, None, None)
    assert "reached_0.82" not in compare.repeats(compare.read(repeated), None)[0]


def test_times_to_an_accuracy_have_a_spread_too(repeated: list[Path]) -> None:
    """61.62 s, 42.892 s and 61.62 s."""
    [row, *_] = compare.repeats(compare.read(repeated), 0.8)
    assert (row["reached_0.8"], row["seconds_to_0.8_mean"]) == (3, pytest.approx(55.3773, abs=1e-3))
    assert row["seconds_to_0.8_sd"] == pytest.approx(18.728 / sqrt(3), abs=1e-3)


@pytest.mark.parametrize(
    "lock",
    [
        {"partition_set": "set 1"},  # with other shards in it: another file of the same name
        {"run_config": {"batch-size": 32, "extra": 1}},
        {"test_set": "0"},
        {"testbed": "elsewhere"},
        {"clients": []},
    ],
    ids=lambda lock: next(iter(lock)),
)
def test_what_differs_in_more_is_no_repeat(tmp_path: Path, lock: dict[str, Any]) -> None:
    folders = [repeat(tmp_path, "first", 1, 0.8), repeat(tmp_path, "second", 2, 0.8, **lock)]
    assert compare.repeats(compare.read(folders), None) == []
    folders = [folders[0], repeat(tmp_path, "third", 2, 0.8)]
    assert len(compare.repeats(compare.read(folders), None)) == 1


def test_the_best_are_those_of_the_means(repeated: list[Path]) -> None:
    """The best run is one of three whose mean is not."""
    found = compare.read(repeated)
    shown = compare.page(found, 0.8)
    assert [(tile.label, tile.value, tile.detail) for tile in shown.tiles[1:]] == [
        ("reached 0.8", "4", "of 5 runs"),
        ("first at 0.8", "55.4 s", "mean of 3 runs: first and its repeats"),
        ("best final accuracy", "0.8500", "other"),
    ]
    text = Reader(page.html(shown)).text
    assert "Runs that differ in the seed alone" in text
    assert compare.page([run for run in found if run.name != "other"], 0.8).tiles[-1].value == "0.8300 ± 0.0896"


def test_one_run_or_one_name_twice_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="one run alone"):
        compare.read([runs[0], runs[0]])
    twin = run_folder.copy(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match="named more than once"):
        compare.read([runs[0], twin])


def test_the_command_prints_rows_and_writes_a_page(runs: list[Path]) -> None:
    cwd = runs[0].parents[1]
    done = fltestbed("compare", runs[0].name, "other", "--accuracy", "0.8", "--output", "out/page.html", cwd=cwd)
    assert done.stdout.startswith("RUNS\nrun ") and "\nDIFFERENCES\nwhat " in done.stdout
    assert Reader((cwd / "out/page.html").read_text(encoding="utf-8")).loaded == []
    said = json.loads(fltestbed("compare", runs[0].name, "other", "--format", "json", cwd=cwd).stdout)
    assert [row["run"] for row in said["runs"]] == [runs[0].name, "other"]
    assert said["repeats"] == []
    assert "did you mean other?" in fltestbed("compare", "other", "othr", cwd=cwd, code=3).stderr
    assert "--accuracy" in fltestbed("compare", "other", "x", "--accuracy", "80", cwd=cwd, code=2).stderr
