"""The experiment file: what is accepted, what is said about mistakes, and the module that makes it a plan."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_dataset import write_idx

from fltestbed import experiment
from fltestbed.errors import ExperimentError

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "experiments/fashion-mnist-cnn.yml"


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yml"
    file.write_text(text)
    return file


def test_the_shipped_file_shows_every_key() -> None:
    shown = yaml.safe_load(SHIPPED.read_text())
    resolved = experiment.load(SHIPPED).model_dump()
    assert {key: value for key, value in resolved.items() if not isinstance(value, dict)}.keys() <= shown.keys()
    for part in ("data", "partitioner", "strategy", "train"):
        assert shown[part].items() <= resolved[part].items()


@pytest.mark.parametrize("file", sorted(SHIPPED.parent.iterdir()), ids=lambda file: file.stem)
def test_a_shipped_file_is_in_order(file: Path) -> None:
    shipped = experiment.load(file)
    assert shipped.name == file.stem
    assert shipped.description
    assert (ROOT / f"fl_app/testbed_app/nets/{shipped.model.replace('-', '_')}.py").exists()


def test_a_name_is_all_that_is_needed(tmp_path: Path) -> None:
    assert experiment.load(write(tmp_path, "name: mine")).partitioner.name == "iid"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("name: mine\nrouds: 3", "mine.yml:2: rouds: no such key", "rounds"),
        ("name: mine\ntrain:\n  learnig_rate: 1", "mine.yml:3: train.learnig_rate: no such key", "train.learning_rate"),
        ("rounds: 3", "name: is missing", ""),
        ("name: mine\nrounds: 0", "mine.yml:2: rounds: cannot be 0", "at least 1"),
        ("name: mine\nrounds: '5'", "rounds: cannot be '5'", "a whole number, without quotes"),
        ("name: a/b", "mine.yml:1: name:", ""),
        ("name: mine\npartitioner: {name: dirichlet, alpha: -1}", "mine.yml:2: partitioner.alpha:", ""),
        ("name: mine\npartitioner: {name: iid, alpha: 1}", "mine.yml:2: partitioner.alpha: no such key", ""),
        (
            "name: mine\npartitioner: {name: lda}",
            "mine.yml:2: partitioner: there is no 'lda'",
            "known are by-group, dirichlet, emd, iid, ",
        ),
        ("name: mine\ntrain: {learning_rate: .nan}", "train.learning_rate: cannot be nan", "a finite number"),
        ("- name", "is not a mapping", ""),
        ("name: [", "is not valid YAML", ""),
        ("name: 2024-13-45", "is not valid YAML", ""),
    ],
)
def test_mistakes_name_line_and_key(tmp_path: Path, text: str, said: str, hint: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment.load(write(tmp_path, text))
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment.load(write(tmp_path, "name: mine\nrounds: 0\nseed: -1"))
    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == ["rounds", "seed"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"none\.yml: cannot be read: No such file"):
        experiment.load(tmp_path / "none.yml")


def test_settings_go_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "name: mine\nrounds: 9\ntrain: {batch_size: 8}")
    read = experiment.load(
        file, ["rounds=2", "train.learning_rate=1e-3", "partitioner.name=dirichlet", "min_clients=1"]
    )
    assert (read.rounds, read.train.batch_size, read.train.learning_rate, read.min_clients) == (2, 8, 0.001, 1)
    assert read.partitioner == experiment.Dirichlet(name="dirichlet", alpha=0.5)


def test_the_name_of_a_schedule_will_do(tmp_path: Path) -> None:
    file = write(tmp_path, "name: mine\ntrain: {schedule: cosine}")
    assert experiment.load(file).train.schedule == experiment.Cosine(name="cosine", least=0.0)
    step = experiment.load(file, ["train.schedule.name=step", "train.schedule.every=3"])
    assert step.train.schedule == experiment.Step(name="step", every=3, factor=0.1)
    assert experiment.load(SHIPPED, ["train.schedule=exponential"]).train.schedule.name == "exponential"
    assert "schedule" not in step.run_config(), "the server tells the clients"


def test_a_new_name_drops_the_arguments_of_the_old_one() -> None:
    assert experiment.load(SHIPPED, ["partitioner.name=iid"]).partitioner == experiment.Iid(name="iid")
    assert experiment.load(SHIPPED, ["name=other"]).rounds == experiment.load(SHIPPED).rounds


def test_a_new_name_keeps_the_arguments_that_it_knows_too(tmp_path: Path) -> None:
    text = "strategy: {name: fedadam, fraction_train: 0.3, eta: 1, beta_1: 0.5}\ndata: {source: hub, name: mnist}"
    file = write(tmp_path, f"name: mine\n{text}\nprivacy: {{name: client-fixed, clipping_norm: 3}}")
    settings = ["strategy.name=fedadagrad", "data.name=cifar-100", "privacy.name=server-adaptive"]
    read = experiment.load(file, settings)
    assert read.strategy == experiment.FedAdagrad(name="fedadagrad", fraction_train=0.3, eta=1)
    assert (read.data.source, read.data.name) == ("hub", "cifar-100")
    assert read.privacy == experiment.ServerAdaptive(name="server-adaptive")


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_and_its_arguments_may_be_set_in_any_order(order: int) -> None:
    settings = ["strategy.fraction_train=0.3", "strategy.tiers=2", "rounds=1", "strategy.name=tifl"][::order]
    read = experiment.load(SHIPPED, settings)
    assert read.strategy == experiment.TiFL(name="tifl", fraction_train=0.3, tiers=2)
    with pytest.raises(ExperimentError, match=r"setting 'strategy\.tiers=2': strategy\.tiers: no such key"):
        experiment.load(SHIPPED, [*settings, "strategy.name=fedavg"])


def test_a_setting_of_the_whole_part_replaces_what_was_set_of_it_before() -> None:
    settings = ["partitioner.alpha=9", "partitioner={name: emd, emd: 1}", "rounds=1", "partitioner.name=quantity"]
    assert experiment.load(SHIPPED, settings[:2]).partitioner == experiment.Emd(name="emd", emd=1)
    assert experiment.load(SHIPPED, settings).partitioner == experiment.Quantity(name="quantity")


@pytest.mark.parametrize(
    ("setting", "said", "hint"),
    [
        ("train.batchsize=3", "there is no key 'train.batchsize'", "train.batch_size"),
        ("strategy.eta_l=0.1", "there is no key 'strategy.eta_l'", "the clients' learning rate is train.learning_rate"),
        ("train.schedule=linear", "setting 'train.schedule=linear': train.schedule: there is no 'linear'", "cosine"),
        ("rounds", "is not of the form key=value", "rounds=2"),
        ("rounds=[", "the value is not valid YAML", "quote it"),
        ("rounds=2024-13-45", "the value is not valid YAML", "quote it"),
        ("rounds=0", "setting 'rounds=0': rounds: cannot be 0", ""),
        ("train={batch_size: 0}", "setting 'train={batch_size: 0}': train.batch_size:", ""),
    ],
)
def test_mistakes_in_settings_name_the_setting(setting: str, said: str, hint: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment.load(SHIPPED, [setting])
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_the_app_declares_the_settings_with_the_same_defaults(tmp_path: Path) -> None:
    declared = tomllib.loads((ROOT / "fl_app/pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    defaults = experiment.load(write(tmp_path, "name: mine")).run_config()
    assert declared == {"run": "", **defaults}


def run_module(cache_dir: Path, **arguments: Any) -> dict[str, Any]:
    """Run the Ansible module as Ansible does, with a small data set in the cache."""
    given = {
        "experiment": str(SHIPPED),
        "clients": [{"device": "pi-1", "client": "pi-1-1"}, {"device": "pi-1", "client": "pi-1-2"}],
        "cache_dir": str(cache_dir),
        "content_dir": str(ROOT),
        "calibration": str(cache_dir / "calibration.json"),
        **arguments,
    }
    done = subprocess.run(
        [sys.executable, ROOT / "plugins/modules/testbed_experiment.py"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_module_returns_a_plan_and_changes_nothing_the_second_time(tmp_path: Path) -> None:
    write_idx(tmp_path / "data/fashion-mnist", train=1000, test=50)
    first = run_module(tmp_path, settings=["rounds=2"])
    assert first["changed"]
    assert first["experiment"]["rounds"] == 2
    assert first["app"]["path"] == str(ROOT / "fl_app")
    assert first["app"]["reports"]
    assert first["run_config"]["batch-size"] == 32
    assert first["test_set"]["examples"] == 50
    assert [(part["client"], part["id"]) for part in first["partitions"]] == [("pi-1-1", 0), ("pi-1-2", 1)]
    assert sum(part["examples"] + part["held_out"] for part in first["partitions"]) == 1000
    second = run_module(tmp_path, settings=["rounds=2"])
    assert not second["changed"]
    assert second["partitions"] == first["partitions"]


def test_the_module_applies_the_rules_to_what_ansible_knows_of_the_clients(tmp_path: Path) -> None:
    write_idx(tmp_path / "data/fashion-mnist", train=1000, test=50)
    clients = [
        {"device": "pi-1", "client": "pi-1", "cpus": 0.5, "memory": 2**29, "settings": {"batch_size": 4}},
        {"device": "pi-2", "client": "pi-2", "cpus": 2, "memory": 2**30},
    ]
    text = ["rules=[{when: {memory_below: 1g}, set: {deadline: 9}}, {balance: {round_seconds: 2}}]"]
    refused = run_module(tmp_path, clients=clients, settings=text)
    assert refused["msg"] == (
        "rules: rule 2 needs figures of pi-1 that were not measured\nfltestbed calibrate measures the clients"
    )
    measured = {
        each["client"]: {
            "samples_per_second": 50,
            "batch_size": 8,
            "model": "cnn",
            "cpus": each["cpus"],
            "memory": each["memory"],
        }
        for each in clients
    }
    (tmp_path / "calibration.json").write_text(json.dumps(measured))
    parts = run_module(tmp_path, clients=clients, settings=text)["partitions"]
    assert [part["rules"] for part in parts] == [[1, 2], [2]]
    assert [(part["settings"]["batch_size"], part["settings"].get("deadline")) for part in parts] == [
        (4, 9.0),
        (32, None),
    ]
    for part in parts:
        assert part["settings"]["data_fraction"] * part["settings"]["local_epochs"] * part["examples"] == pytest.approx(
            100
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"experiment": "/none.yml"}, "/none.yml: cannot be read"),
        ({"settings": ["min_clients=3"]}, "min_clients: is 3, but the inventory has 2 clients"),
        ({"settings": ["app=none"]}, "there is no Flower app 'none'"),
        ({"clients": []}, "the inventory has no clients"),
    ],
)
def test_the_module_fails_with_the_reason(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    write_idx(tmp_path / "data/fashion-mnist", train=1000, test=50)
    result = run_module(tmp_path, **arguments)
    assert result["failed"]
    assert said in result["msg"]


def test_an_app_beside_the_experiment_must_know_the_settings(tmp_path: Path) -> None:
    file = write(tmp_path, "name: mine\napp: own")
    own = Path(shutil.copytree(ROOT / "fl_app", tmp_path / "own"))
    declared = (own / "pyproject.toml").read_text()
    (own / "pyproject.toml").write_text(declared.replace("batch-size = 32\n", "").replace("seed = 42\n", ""))
    result = run_module(tmp_path, experiment=str(file))
    assert "[tool.flwr.app.config] lacks batch-size, seed" in result["msg"]


def test_an_app_alone_needs_no_data(tmp_path: Path) -> None:
    result = run_module(tmp_path, experiment=None, app=str(ROOT / "tests/apps/logistic"), settings=["label=x"])
    assert (result["changed"], result["experiment"], result["partitions"], result["test_set"]) == (
        False,
        None,
        [],
        None,
    )
    assert (result["name"], result["run_config"]) == ("logistic", {"label": "x"})
    assert not result["app"]["reports"]
    assert not list(tmp_path.iterdir())


def test_privacy_takes_a_strategy_whose_clients_begin_with_one_model(tmp_path: Path) -> None:
    file = write(tmp_path, "name: mine\nstrategy: {name: fedbuff}\nprivacy: {name: client-fixed}")
    with pytest.raises(ExperimentError, match="Flower's wrappers take all clients to begin with one model"):
        experiment.load(file)
    assert experiment.load(file, ["strategy.name=fedprox"]).privacy == experiment.ClientFixed(name="client-fixed")


def test_a_key_that_is_gone_is_still_the_experiments() -> None:
    """So that its message is, and not one of the app's."""
    ours = ["strategy.eta_l=1", "rounds=2"]
    assert experiment.split([*ours, "hidden-size=8"]) == (ours, ["hidden-size=8"])
