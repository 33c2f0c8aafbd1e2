"""What is said of runs side by side."""

import json
from pathlib import Path

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
    assert "did you mean other?" in fltestbed("compare", "other", "othr", cwd=cwd, code=3).stderr
    assert "--accuracy" in fltestbed("compare", "other", "x", "--accuracy", "80", cwd=cwd, code=2).stderr
