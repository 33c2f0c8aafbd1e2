"""Rules: what each client trains with, worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from fltestbed import experiment, rules
from fltestbed.errors import ExperimentError

MIB, GIB = 2**20, 2**30
SMALL = {"device": "pi-3", "client": "pi-3", "cpus": 0.5, "memory": 640 * MIB, "settings": {}}
MIDDLE = {"device": "pi-4", "client": "pi-4", "cpus": 1.0, "memory": GIB, "settings": {}}
LARGE = {"device": "laptop", "client": "laptop", "cpus": 2.0, "memory": 2 * GIB, "settings": {}}
CLIENTS = [SMALL, MIDDLE, LARGE]
TRAIN = {
    "batch_size": 32,
    "learning_rate": 0.05,
    "local_epochs": 1,
    "data_fraction": 1.0,
    "participation": 1.0,
    "width": 1.0,
}


def measured(*speeds: float) -> dict[str, dict[str, Any]]:
    """Return a calibration of the clients with the experiment's defaults, which took 400 MiB."""
    return {
        str(client["client"]): {
            "samples_per_second": speed,
            "peak_memory_bytes": 400 * MIB,
            "model": "cnn",
            "batch_size": 32,
            "cpus": client["cpus"],
            "memory": client["memory"],
            "time": "2026-01-01T00:00:00Z",
        }
        for client, speed in zip(CLIENTS, speeds, strict=True)
    }


def load(folder: Path, text: str) -> experiment.Experiment:
    file = folder / "mine.yml"
    file.write_text(f"name: mine\n{text}\n")
    return experiment.load(file)


def resolve(folder: Path, text: str, *speeds: float, clients: list[dict[str, Any]] | None = None) -> list[Any]:
    """Return what the rules change for each client, and the numbers of the rules."""
    found = rules.resolve(
        load(folder, text), clients or CLIENTS, [1000, 1000, 1000], measured(*speeds) if speeds else {}
    )
    assert not any(each.missed for each in found)
    return [
        ({key: value for key, value in each.settings.items() if TRAIN.get(key) != value}, each.rules) for each in found
    ]


def test_without_rules_a_client_has_what_the_experiment_says(tmp_path: Path) -> None:
    assert rules.resolve(load(tmp_path, "rounds: 1"), [SMALL], [1000], {}) == [(TRAIN, [], "")]


def test_a_condition_chooses_the_clients_and_a_later_rule_goes_before(tmp_path: Path) -> None:
    text = """rules:
  - {set: {batch_size: 16, participation: 0.5}}
  - when: {memory_from: 1g, cpus_below: 2}
    set: {batch_size: 64, deadline: 20}"""
    assert resolve(tmp_path, text) == [
        ({"batch_size": 16, "participation": 0.5}, [1]),
        ({"batch_size": 64, "participation": 0.5, "deadline": 20.0}, [1, 2]),
        ({"batch_size": 16, "participation": 0.5}, [1]),
    ]


def test_the_inventory_goes_before_the_rules(tmp_path: Path) -> None:
    own = [SMALL | {"settings": {"batch_size": 8}}, MIDDLE, LARGE]
    assert resolve(tmp_path, "rules: [{set: {batch_size: 16}}]", clients=own)[0] == ({"batch_size": 8}, [])


def test_a_client_without_a_limit_is_above_any_bound(tmp_path: Path) -> None:
    free = [client | {"memory": None} for client in CLIENTS]
    text = (
        "rules: [{when: {memory_below: 1000g}, set: {batch_size: 1}}, {when: {memory_from: 9g}, set: {batch_size: 2}}]"
    )
    assert resolve(tmp_path, text, clients=free) == [({"batch_size": 2}, [2])] * 3


def test_settings_are_scaled_by_the_most_capable_client(tmp_path: Path) -> None:
    """cpus 0.5, 1 and 2 are a quarter, a half and the whole of 10 epochs: 2.5, which is 3 rounded, 5 and 10."""
    found = resolve(
        tmp_path, "train: {local_epochs: 10}\nrules: [{scale: {local_epochs: cpus, data_fraction: memory}}]"
    )
    assert [(each["local_epochs"], each.get("data_fraction", 1.0)) for each, _ in found] == [
        (3, 640 / 2048),
        (5, 0.5),
        (10, 1.0),
    ]


def test_a_rule_scales_by_the_most_capable_of_its_own_clients(tmp_path: Path) -> None:
    text = "train: {local_epochs: 10}\nrules: [{when: {cpus_below: 2}, scale: {local_epochs: cpus}}]"
    assert [each["local_epochs"] for each, _ in resolve(tmp_path, text)] == [5, 10, 10]


def test_models_are_as_wide_as_the_memory(tmp_path: Path) -> None:
    text = (
        "strategy: {name: heterofl}\nrules: [{scale: {width: memory}}, {when: {memory_below: 1g}, set: {width: 0.25}}]"
    )
    own = [SMALL, MIDDLE, LARGE | {"settings": {"width": 0.75}}]
    assert resolve(tmp_path, text, clients=own) == [
        ({"width": 0.25}, [1, 2]),
        ({"width": 0.5}, [1]),
        ({"width": 0.75}, []),
    ]


@pytest.mark.parametrize("rule", ["{balance: {round_seconds: 10}}", "{fit_memory: 0.9}"])
@pytest.mark.parametrize("order", [1, -1])
def test_figures_of_another_width_are_refused(tmp_path: Path, rule: str, order: int) -> None:
    narrow = "{when: {memory_below: 1g}, set: {width: 0.5}}"
    text = f"strategy: {{name: heterofl}}\nrules: [{', '.join([narrow, rule][::order])}]"
    with pytest.raises(ExperimentError) as caught:
        resolve(tmp_path, text, 30, 100, 260)
    number = [2, 1][::order][0]
    assert caught.value.message == (f"rules: rule {number}: pi-3 was measured with width 1, and the rules give it 0.5")
    assert "testbed_client: {width: 0.5}, and run fltestbed calibrate" in caught.value.hint
    calibrated = measured(30, 100, 260)
    calibrated["pi-3"]["width"] = 0.5
    own = [SMALL | {"settings": {"width": 0.5}}, MIDDLE, LARGE]
    assert rules.resolve(load(tmp_path, text), own, [1000] * 3, calibrated)[0].settings["width"] == 0.5


def test_a_width_may_follow_from_the_speed_of_the_whole_model(tmp_path: Path) -> None:
    text = "strategy: {name: heterofl}\nrules: [{when: {samples_per_second_below: 50}, set: {width: 0.5}}]"
    assert resolve(tmp_path, text, 30, 100, 260)[0] == ({"width": 0.5}, [1])


def test_the_linear_scaling_rule(tmp_path: Path) -> None:
    """0.05 at 32 is 0.0125 at 8, and 0.1 at 64, whoever said so: the rule, the inventory or nobody."""
    own = [SMALL, MIDDLE | {"settings": {"batch_size": 64}}, LARGE]
    text = "rules: [{when: {memory_below: 1g}, set: {batch_size: 8}}, {scale: {learning_rate: batch_size}}]"
    assert resolve(tmp_path, text, clients=own) == [
        ({"batch_size": 8, "learning_rate": 0.0125}, [1, 2]),
        ({"batch_size": 64, "learning_rate": 0.1}, [2]),
        ({}, [2]),
    ]


def test_balanced_clients_take_the_same_time(tmp_path: Path) -> None:
    """In 10 s at 30, 100 and 260 examples/s, a client passes 0.3, 1 and 2.6 times over its 1000 examples."""
    found = rules.resolve(
        load(tmp_path, "rules: [{balance: {round_seconds: 10}}]"), CLIENTS, [1000] * 3, measured(30, 100, 260)
    )
    passes = [(each.settings["local_epochs"], each.settings["data_fraction"]) for each in found]
    assert passes == [(1, 0.3), (1, 1.0), (3, pytest.approx(2.6 / 3))]
    for (epochs, share), speed in zip(passes, (30, 100, 260), strict=True):
        assert epochs * share * 1000 / speed == pytest.approx(10)


@pytest.mark.parametrize(
    ("own", "speed", "epochs", "share", "missed"),
    [
        ({"data_fraction": 0.5}, 250, 5, 0.5, ""),  # 2.5 passes are 5 over a half
        ({"data_fraction": 0.5}, 70, 1, 0.5, "rule 1: 7.14 s instead of 10 s"),
        ({"data_fraction": 1.0}, 20, 1, 1.0, "rule 1: 50 s instead of 10 s"),
        ({"local_epochs": 4}, 100, 4, 0.25, ""),
        ({"local_epochs": 1}, 250, 1, 1.0, "rule 1: 4 s instead of 10 s"),
        ({"local_epochs": 2, "data_fraction": 0.5}, 100, 2, 0.5, ""),
        ({"local_epochs": 2, "data_fraction": 1.0}, 100, 2, 1.0, "rule 1: 20 s instead of 10 s"),
        ({}, 500_000, 1000, 1.0, "rule 1: 2 s instead of 10 s"),
    ],
)
def test_balance_makes_up_for_what_the_inventory_sets(
    tmp_path: Path, own: dict[str, Any], speed: float, epochs: int, share: float, missed: str
) -> None:
    """At so many examples/s, a client passes speed / 100 times over its 1000 examples in 10 s."""
    [found] = rules.resolve(
        load(tmp_path, "rules: [{balance: {round_seconds: 10}}]"),
        [SMALL | {"settings": own}],
        [1000],
        measured(speed, 1, 1),
    )
    assert (found.settings["local_epochs"], found.settings["data_fraction"]) == (epochs, pytest.approx(share))
    assert found.missed == missed


def test_what_a_later_rule_makes_of_a_balance_is_said(tmp_path: Path) -> None:
    text = "rules: [{balance: {round_seconds: 10}}, {set: {local_epochs: 3}}]"
    [found] = rules.resolve(load(tmp_path, text), [SMALL], [1000], measured(100, 1, 1))
    assert found.missed == "rule 1: 30 s instead of 10 s"


def with_sizes(**peaks: list[int]) -> dict[str, dict[str, Any]]:
    """Return a calibration with the peaks, in MiB, of the batch sizes 16, 32 and 64; a larger one is faster."""
    found = measured(1, 1, 1)
    for name, sizes in peaks.items():
        found[name.replace("_", "-")]["batch_sizes"] = [
            {"batch_size": size, "samples_per_second": float(size), "peak_memory_bytes": peak * MIB}
            for size, peak in zip((16, 32, 64), sizes, strict=False)
        ]
    return found


def test_the_largest_batch_within_the_memory_limit(tmp_path: Path) -> None:
    """0.9 of the limits are 576, 922 and 1843 MiB; of the laptop nothing but its own batch size was measured."""
    text = "rules: [{fit_memory: 0.9, scale: {learning_rate: batch_size}}]"
    found = rules.resolve(load(tmp_path, text), CLIENTS, [1000] * 3, with_sizes(pi_3=[500, 577], pi_4=[500, 600, 700]))
    assert [(each.settings["batch_size"], each.settings["learning_rate"]) for each in found] == [
        (16, 0.025),
        (64, 0.1),
        (32, 0.05),
    ]
    with pytest.raises(
        ExperimentError, match=r"pi-3 took 500m with batch_size 16, which is more than 0\.7 of its 640m"
    ):
        rules.resolve(load(tmp_path, text.replace("0.9", "0.7")), CLIENTS, [1000] * 3, with_sizes(pi_3=[500, 577]))


def test_clients_are_balanced_by_their_speed_with_the_batch_size_that_they_get(tmp_path: Path) -> None:
    """In 10 s at 16 and at 64 examples/s: 160 and 640 of 1000."""
    sizes = with_sizes(pi_3=[1, 1, 1])
    for batch_size, share in ((20, 0.16), (64, 0.64)):
        text = f"rules: [{{set: {{batch_size: {batch_size}}}, balance: {{round_seconds: 10}}}}]"
        [pi, *_] = rules.resolve(load(tmp_path, text), CLIENTS, [1000] * 3, sizes)
        assert pi.settings["data_fraction"] == pytest.approx(share)


def test_speed_is_a_condition_and_a_scale(tmp_path: Path) -> None:
    text = """rules:
  - {when: {samples_per_second_below: 50}, set: {deadline: 5}}
  - {scale: {participation: samples_per_second}}"""
    assert [each for each, _ in resolve(tmp_path, text, 20, 50, 100)] == [
        {"deadline": 5.0, "participation": 0.2},
        {"participation": 0.5},
        {},
    ]


@pytest.mark.parametrize(
    ("change", "text", "said"),
    [
        ({"pi-4": None}, "balance: {round_seconds: 9}", "rule 1 needs figures of pi-4 that were not measured"),
        ({"pi-4": {"cpus": 3.0}}, "balance: {round_seconds: 9}", "pi-4 was measured with cpus 3.0, which is 1.0 now"),
        (
            {"pi-3": {"model": "mlp"}},
            "balance: {round_seconds: 9}",
            "pi-3 was measured with model mlp, which is cnn now",
        ),
        (
            {"pi-3": {"width": 0.5}},
            "balance: {round_seconds: 9}",
            "pi-3 was measured with width 0.5, which is 1.0 now",
        ),
        ({"laptop": {"peak_memory_bytes": 0}}, "fit_memory: 0.9", "the calibration of laptop has no peak_memory_bytes"),
        ({"pi-3": None}, "when: {samples_per_second_from: 1}, set: {batch_size: 1}", "figures of pi-3"),
    ],
)
def test_what_was_not_measured_so_has_to_be(tmp_path: Path, change: dict[str, Any], text: str, said: str) -> None:
    found = measured(1, 1, 1)
    for name, values in change.items():
        if values is None:
            del found[name]
        else:
            found[name] |= values
    with pytest.raises(ExperimentError) as caught:
        rules.require(load(tmp_path, f"rules: [{{{text}}}]"), CLIENTS, found)
    assert said in caught.value.message
    assert "fltestbed calibrate" in caught.value.hint


def test_only_the_clients_of_a_rule_have_to_be_known(tmp_path: Path) -> None:
    found = {"pi-3": measured(1, 1, 1)["pi-3"]}
    rules.require(load(tmp_path, "rules: [{when: {cpus_below: 1}, balance: {round_seconds: 1}}]"), CLIENTS, found)


def test_a_limit_that_a_rule_needs(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="rule 1 needs the cpus limit of pi-3, which has none") as caught:
        resolve(tmp_path, "rules: [{scale: {local_epochs: cpus}}]", clients=[SMALL | {"cpus": None}, MIDDLE, LARGE])
    assert "testbed_client: {cpus: 1}" in caught.value.hint


@pytest.mark.parametrize("text", ["[", "[]", '{"pi-3": 1}'])
def test_a_calibration_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "calibration.json"
    assert rules.read(file) == {}
    file.write_text(text)
    with pytest.raises(ExperimentError, match=r"calibration\.json: ") as caught:
        rules.read(file)
    assert "fltestbed calibrate" in caught.value.hint
    file.write_text(json.dumps(measured(1, 2, 3)))
    assert rules.read(file)["laptop"]["samples_per_second"] == 3


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("rules: {set: {batch_size: 1}}", "mine.yml:2: rules: cannot be", "after a hyphen"),
        (
            "rules:\n  - set: {batch_size: 1}\n  - set:\n      batchsize: 1",
            "mine.yml:5: rules.1.set.batchsize: no such key",
            "did you mean rules.set.batch_size",
        ),
        ("rules:\n  - wen: {}", "mine.yml:3: rules.0.wen: no such key", "rules.when"),
        ("rules:\n\n  - when: {cpus_below: 1}", "mine.yml:4: rules.0: the rule sets nothing", "add set, scale"),
        ("rules: [{when: {memory_below: lots}, set: {}}]", "mine.yml:2: rules.0.when.memory_below: cannot be", "512m"),
        ("rules: [{scale: {local_epochs: cpu}}]", "rules.0.scale.local_epochs: there is no 'cpu'", "did you mean cpus"),
        ("rules: [{scale: {batch_size: batch_size}}]", "rules.0.scale.batch_size: there is no", "known are"),
        ("rules: [{fit_memory: 1.5}]", "rules.0.fit_memory: cannot be 1.5", "at most 1"),
    ],
)
def test_mistakes_name_line_and_key(tmp_path: Path, text: str, said: str, hint: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        load(tmp_path, text)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_rule_is_no_setting_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("name: mine")
    assert experiment.load(file, ["rules=[{set: {batch_size: 4}}]"]).rules[0].set == experiment.Settings(batch_size=4)
    with pytest.raises(ExperimentError, match=r"there is no key 'rules\.set'"):
        experiment.load(file, ["rules.set=1"])
