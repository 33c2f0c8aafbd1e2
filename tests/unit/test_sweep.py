"""Many runs of one experiment: which there are, and which are done."""

import json
from pathlib import Path
from typing import Any

import pytest

from fltestbed import experiment, sweep
from fltestbed.errors import ExperimentError

CLIENTS = [{"device": "pi-1", "client": "pi-1-1"}, {"device": "pi-1", "client": "pi-1-2"}]


def read(folder: Path, text: str, settings: list[str] | None = None) -> experiment.Experiment:
    file = folder / "many.yml"
    file.write_text(f"name: many\n{text}")
    return experiment.load(file, settings or [])


def test_every_combination_with_every_seed(tmp_path: Path) -> None:
    text = "seed: 3\nrepeats: 2\nsweep: {partitioner: [{name: iid}, {name: emd, emd: 1}], rounds: [1, 2]}"
    points = sweep.points(read(tmp_path, text))
    assert [
        (point.values["partitioner"]["name"], point.values["rounds"], point.values["seed"]) for point in points
    ] == [(name, rounds, seed) for name in ("iid", "emd") for rounds in (1, 2) for seed in (3, 4)]
    one = read(tmp_path, text, points[-1].settings)
    assert one.partitioner == experiment.Emd(name="emd", emd=1)
    assert (one.rounds, one.seed, one.sweep, one.repeats) == (2, 4, None, 1)
    assert points[-1].columns == {"partitioner": '{"name": "emd", "emd": 1}', "rounds": 2, "seed": 4}


def test_without_a_sweep_there_is_one_run(tmp_path: Path) -> None:
    assert sweep.points(read(tmp_path, "rounds: 2")) == [sweep.Point({})]


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("sweep: {round: [1]}", "there is no key 'round' to sweep over", "did you mean rounds?"),
        ("sweep: {rounds: []}", "rounds has no values", "write a list"),
        ("sweep: {rounds: 3}", "many.yml:2: sweep.rounds: cannot be 3", "a list of values"),
        ("sweep: [rounds]", "many.yml:2: sweep: cannot be ['rounds']", "keys and lists of their values"),
        ("repeats: 2\nsweep: {seed: [1]}", "each repeat has a seed of its own", "take one of them out"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str, hint: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        read(tmp_path, text)
    assert said in caught.value.message
    assert hint in caught.value.hint


def put(folder: Path, plan: Any, status: str) -> None:
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(plan))
    (folder / "run.json").write_text(json.dumps({"status": status}))


def test_a_run_is_done_if_the_same_finished_with_the_same_clients(tmp_path: Path) -> None:
    wanted, runs = read(tmp_path, "rounds: 2"), tmp_path / "runs"
    plan = {"experiment": wanted.model_dump(), "clients": CLIENTS}
    assert sweep.finished(wanted, CLIENTS, runs) is None
    put(runs / "1-failed", plan, "failed")
    put(runs / "2-other", {**plan, "experiment": {**plan["experiment"], "seed": 1}}, "finished")  # type: ignore[dict-item]
    put(runs / "3-fewer", {**plan, "clients": CLIENTS[:1]}, "finished")
    put(runs / "4-damaged", [], "finished")
    (runs / "5-empty").mkdir()
    assert sweep.finished(wanted, CLIENTS, runs) is None
    put(runs / "6-done", plan, "finished")
    assert sweep.finished(wanted, CLIENTS, runs) == runs / "6-done"
