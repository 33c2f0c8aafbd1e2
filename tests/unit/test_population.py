"""Populations: the same seed draws the same devices, and what cannot be is clipped or refused."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fltestbed import inventory, new_inventory, population
from fltestbed.errors import InventoryError
from fltestbed.population import Gaussian, Pareto, Table, Uniform, chance, draw, load, value


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    file = Path("population.yml")
    file.write_text(text)
    return file


def devices(text: str, scale: float = 1.0) -> list[population.Device]:
    return draw(load(write(text)), scale)


SIZES = "cpus: {name: uniform, least: 0.2, most: 2}\nmemory: {name: gaussian, mean: 1g, deviation: 256m}"


def test_a_chance_is_the_first_53_bits_of_a_hash() -> None:
    bits = int(hashlib.sha256(b"7 cpus 3").hexdigest()[:16], 16) >> 11
    assert chance(7, "cpus", 3) == (bits + 0.5) / 2**53
    assert chance(42, "cpus", 1) == 0.5715459033422785
    drawn = [chance(1, "cpus", number) for number in range(2000)]
    assert min(drawn) > 0 and max(drawn) < 1
    assert sum(drawn) / 2000 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("distribution", "at", "expected"),
    [
        (Uniform(name="uniform", least=0.5, most=2), 0.5, 1.25),
        (Gaussian(name="gaussian", mean=1, deviation=0.25), 0.5, 1.0),
        (Gaussian(name="gaussian", mean=1, deviation=0.25), 0.8413447460685429, 1.25),
        (Gaussian(name="gaussian", mean=1, deviation=1, least=0.5, most=1.5), 0.01, 0.5),
        (Gaussian(name="gaussian", mean=1, deviation=1, least=0.5, most=1.5), 0.99, 1.5),
        (Pareto(name="pareto", least=0.5, shape=2), 0.75, 1.0),
        (Pareto(name="pareto", least=0.5, shape=2, most=0.8), 0.75, 0.8),
        (Table(name="table", values={0.5: 3, 1: 1}), 0.74, 0.5),
        (Table(name="table", values={0.5: 3, 1: 1}), 0.76, 1.0),
    ],
)
def test_the_quantiles_are_those_of_the_distribution(distribution: Any, at: float, expected: float) -> None:
    assert value(distribution, "cpus", at) == pytest.approx(expected)


def test_the_same_seed_draws_the_same_devices() -> None:
    text = f"devices: 3\nseed: 7\n{SIZES}\nnetwork: {{rate_up: {{name: pareto, least: 1mbit, shape: 1.5}}}}"
    found = [(each.name, each.cpus, each.memory, dict(each.network)) for each in devices(text)]
    assert found == KNOWN
    longer = [(each.cpus, each.memory) for each in devices(text.replace("devices: 3", "devices: 12"))]
    assert longer[:3] == [(cpus, memory) for _, cpus, memory, _ in KNOWN]
    assert [each.cpus for each in devices(text.replace("seed: 7", "seed: 8"))] != [cpus for _, cpus, _, _ in KNOWN]


KNOWN = [
    ("device-1", 1.445, "1150m", {"rate_up": "1.229mbit"}),
    ("device-2", 0.237, "850m", {"rate_up": "1.967mbit"}),
    ("device-3", 1.828, "984m", {"rate_up": "1.141mbit"}),
]


def test_profiles_are_drawn_by_weight_with_their_speed_and_network() -> None:
    found = devices("devices: 200\nprofiles: {rpi3: 3, rpi4: 1}\nnetwork: profile")
    counts = {name: sum(each.profile == name for each in found) for name in ("rpi3", "rpi4")}
    assert counts["rpi3"] == pytest.approx(150, abs=20) and sum(counts.values()) == 200
    slow, fast = (next(each for each in found if each.profile == name) for name in ("rpi3", "rpi4"))
    assert (slow.cpus, slow.memory, fast.cpus, fast.memory) == (2.56, "512m", 4, "3200m")
    assert slow.network == {"rate_up": "300mbit", "rate_down": "300mbit"}
    assert found[0].name == "device-001"


def test_scale_goes_down_to_what_a_client_needs_and_says_so() -> None:
    [each] = devices("devices: 1\nprofiles: {rpi3: 1}", scale=0.03)
    assert (each.cpus, each.memory, each.clipped) == (0.1, "512m", {"cpus": "0.077", "memory": "15m"})
    [each] = devices("devices: 1\nprofiles: {rpi4: 1}", scale=0.25)
    assert (each.cpus, each.memory, each.clipped) == (1, "800m", {})


def test_a_jitter_is_at_most_the_delay() -> None:
    network = "network: {delay: {name: table, values: {5ms: 1}}, jitter: {name: table, values: {9ms: 1}}}"
    [each] = devices(f"devices: 1\n{SIZES}\n{network}")
    assert each.network == {"delay": "5ms", "jitter": "5ms"}
    assert each.clipped["jitter"] == "9ms"


def test_a_population_becomes_an_inventory_that_says_what_it_was_drawn_from() -> None:
    file = write(f"devices: 4\nseed: 3\n{SIZES}\nnetwork: {{rate_down: {{name: uniform, least: 1mbit, most: 9mbit}}}}")
    folder = new_inventory.populate("drawn", file, scale=0.5)
    testbed = inventory.load(folder)
    drawn = draw(load(file), 0.5)
    assert [(client["client"], client["cpus"], client["memory"]) for client in testbed.clients] == [
        (each.name, each.cpus, inventory.memory_bytes(each.memory)) for each in drawn
    ]
    hosts = yaml.safe_load((folder / "hosts.yml").read_text())["testbed"]["children"]["supernodes"]["hosts"]
    assert hosts["device-2"]["testbed_network"] == drawn[1].network
    assert hosts["device-2"]["virtual_device_cpus"] == pytest.approx(drawn[1].cpus + 0.1)
    kept = yaml.safe_load((folder / "group_vars/testbed.yml").read_text())["testbed_population"]
    assert (kept["seed"], kept["scale"], kept["cpus"]["most"]) == (3, 0.5, 2)
    clipped = {each.name: dict(each.clipped) for each in drawn if each.clipped}
    assert clipped and kept["clipped"] == clipped
    assert (folder / "hosts.yml").read_text().count("put to the bound") == len(clipped)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("devices: 0", "population.yml:1: devices: cannot be 0", "reference-profiles"),
        ("devices: 2\nsed: 1", "population.yml:2: sed: no such key", "did you mean seed?"),
        ("devices: 2", "says not how large its devices are", "profiles by weight"),
        ("devices: 2\nprofiles: {rpi44: 1}", "population.yml:2: profiles.rpi44: there is no profile", "rpi4"),
        ("devices: 2\nprofiles: {rpi4: 0}", "profiles.rpi4: cannot be 0", ""),
        (f"devices: 2\nprofiles: {{rpi4: 1}}\n{SIZES}", "have cpus and memory already", "take out"),
        (f"devices: 2\n{SIZES}\nnetwork: profile", "population.yml:4: network: there are no profiles", "rate_up"),
        (
            "devices: 2\ncpus: {name: normal, mean: 1}\nmemory: {name: table, values: {1g: 1}}",
            "population.yml:2: cpus: there is no distribution 'normal'",
            "gaussian",
        ),
        (SIZES.replace("most: 2", "mos: 2") + "\ndevices: 2", "cpus.most: is missing", ""),
        (SIZES.replace("1g", "lots") + "\ndevices: 2", "population.yml:2: memory.mean: cannot be 'lots'", "512m or 2g"),
        (SIZES.replace("least: 0.2", "least: 3") + "\ndevices: 2", "cpus.most: 2 is below the least, 3", "change one"),
        (SIZES.replace("256m", "0m") + "\ndevices: 2", "memory.deviation: cannot be 0", "a table of one value"),
        (
            f"devices: 2\n{SIZES}\nnetwork:\n  delay: {{name: uniform, least: 1ms, most: 2mbit}}",
            "population.yml:5: network.delay.most: delay cannot be '2mbit'",
            "80ms",
        ),
        (f"devices: 2\n{SIZES}\nnetwork: {{rate: 1}}", "population.yml:4: network.rate: no such key", "rate_up"),
        ("devices: [", "population.yml:1: is not valid YAML", ""),
        (f"devices: 2\n{SIZES}\ndevices: 3", "population.yml:4: devices is here twice", "keep one"),
        ("- devices", "population.yml:1: ", ""),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(InventoryError) as caught:
        load(write(text))
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InventoryError, match=r"none\.yml: cannot be read: No such file"):
        load(Path("none.yml"))
