"""Many runs of one experiment: which there are, and which are done."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fltestbed import experiment, inventory, sweep
from fltestbed.errors import ExperimentError

ROOT = Path(__file__).parents[2]


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


def test_a_setting_that_the_sweep_would_undo_is_refused(tmp_path: Path) -> None:
    swept = read(tmp_path, "sweep: {strategy: [{name: fedavg}], train.momentum: [0, 0.9]}")
    assert len(sweep.points(swept, ["train.batch_size=8", "rounds=2"])) == 2
    for setting, axis in (("strategy.fraction_train=0.3", "strategy"), ("train.momentum=0.5", "train.momentum")):
        with pytest.raises(ExperimentError) as caught:
            sweep.points(swept, [setting])
        assert caught.value.message.startswith(f"setting '{setting}': each run has its {axis} of the sweep")
        assert f"take {axis} out" in caught.value.hint
    assert sweep.points(swept, ["train={momentum: 0.1, batch_size: 8}"])


def state(folder: Path) -> dict[str, Any]:
    """Return what is planned and where: what `plan.prepare` returns, the clients, the testbed's name."""
    names = [{"device": "pi-1", "client": f"pi-1-{number}"} for number in (1, 2)]
    settings = {"batch_size": 8, "learning_rate": 0.1}
    return {
        "prepared": {
            "experiment": read(folder, "rounds: 2").model_dump(),
            "run_config": {"batch-size": 32, "extra": 1},
            "partition_set": "p1",
            "test_set": {"path": "/x", "sha256": "t1", "examples": 9},
            "app": {"path": "/app", "name": "app", "version": "1", "sha256": "a1"},
            "partitions": [{**name, "sha256": "s1", "path": "/y", "settings": dict(settings)} for name in names],
        },
        "clients": [{**name, "cpus": 1.0, "memory": 2**30, "settings": {}, "data": "/srv"} for name in names],
        "testbed": "lab",
    }


def put(folder: Path, now: dict[str, Any], status: str = "finished") -> None:
    """Leave a run as the role does: the lock has of what was prepared what it says it has."""
    says = yaml.safe_load((ROOT / "roles/run/vars/main.yml").read_text(encoding="utf-8"))["_run_lock"]
    prepared = now["prepared"] | {"testbed": now["testbed"], "clients": now["clients"]}
    lock = {key: prepared[key] for key in says if key in prepared}
    lock["test_set"] = lock["test_set"]["sha256"]
    lock["partitions"] = [{key: part[key] for key in part if key != "path"} for part in lock["partitions"]]
    folder.mkdir(parents=True)
    (folder / "lock.json").write_text(json.dumps(lock))
    (folder / "run.json").write_text(json.dumps({"status": status}))


def find(now: dict[str, Any], runs: Path) -> Path | None:
    server = inventory.Host("server")
    lab = inventory.Testbed(now["testbed"], Path(), server, (), tuple(now["clients"]), "/opt")
    return sweep.finished(now["prepared"], lab, runs)


def test_a_run_is_done_if_the_same_finished(tmp_path: Path) -> None:
    now, runs = state(tmp_path), tmp_path / "runs"
    assert find(now, runs) is None
    put(runs / "1-failed", now, "failed")
    (runs / "2-empty").mkdir()
    put(runs / "3-damaged", now)
    (runs / "3-damaged/lock.json").write_text("[]")
    put(runs / "4-before-there-was-a-lock", now)
    (runs / "4-before-there-was-a-lock/lock.json").unlink()
    assert find(now, runs) is None
    put(runs / "5-done", now)
    put(runs / "6-done", now)
    assert find(now, runs) == runs / "6-done"


CHANGES = {
    "a value of the experiment": ("prepared", "experiment", "seed"),
    "a key of the app": ("prepared", "run_config", "extra"),
    "the app": ("prepared", "app", "sha256"),
    "the partitions": ("prepared", "partition_set"),
    "the test set": ("prepared", "test_set", "sha256"),
    "a client's data": ("prepared", "partitions", 1, "sha256"),
    "what a client trains with": ("prepared", "partitions", 1, "settings", "batch_size"),
    "a client's name": ("clients", 1, "client"),
    "a client's cores": ("clients", 1, "cpus"),
    "a client's memory": ("clients", 0, "memory"),
    "the testbed": ("testbed",),
}


def change(now: dict[str, Any], way: tuple[str | int, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(now)
    place: Any = changed
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = "other"
    return changed


@pytest.mark.parametrize("way", CHANGES.values(), ids=CHANGES)
def test_a_run_of_something_else_is_not_taken_for_it(tmp_path: Path, way: tuple[str | int, ...]) -> None:
    now, runs = state(tmp_path), tmp_path / "runs"
    put(runs / "1", now)
    assert find(now, runs)
    assert find(change(now, way), runs) is None


def test_data_on_the_devices_are_told_by_their_paths(tmp_path: Path) -> None:
    """Before a run nobody here knows their hashes; after it the lock has them."""
    now, runs = state(tmp_path), tmp_path / "runs"
    put(runs / "1", change(now, ("clients", 0, "data")))
    assert find(now, runs)  # the path is of no account for other data
    now["prepared"]["experiment"]["data"]["source"] = "device"
    put(runs / "2", now)
    assert find(change(now, ("prepared", "partitions", 0, "sha256")), runs) == runs / "2"
    assert find(change(now, ("clients", 0, "data")), runs) is None


def test_the_lock_has_what_is_compared() -> None:
    says = yaml.safe_load((ROOT / "roles/run/vars/main.yml").read_text(encoding="utf-8"))["_run_lock"]
    compared = {"testbed", "experiment", "run_config", "partition_set", "test_set", "app", "partitions", "clients"}
    assert compared <= says.keys()
    for key in ("device", "client", "sha256", "settings"):
        assert f"'{key}'" in says["partitions"]
    assert "'sha256'" in says["app"]
