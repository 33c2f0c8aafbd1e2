"""Profiles and published testbeds say where each figure is from; the latter fit a small machine when scaled."""

import re
from pathlib import Path
from typing import Any

import pytest

from fltestbed import inventory, network, new_inventory
from fltestbed.paths import content_dir

INVENTORIES = content_dir() / "inventories"
PUBLISHED = [name for name in new_inventory.templates() if name.startswith("published/")]
FIGURES = ("cpus", "memory", "speed", "network")


def text(name: str, file: str = "hosts.yml") -> str:
    return (INVENTORIES / name / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "profile"), inventory.profiles().items())
def test_a_profile_says_where_each_figure_is_from(name: str, profile: dict[str, Any]) -> None:
    source = profile["source"]
    assert set(profile) <= {*FIGURES, "source"}
    if not source.startswith(("assumed: ", "FLTK")):
        said = re.findall(r"(?:^|\. )((?:\w+, )*\w+): ", source)
        named = {figure for words in said for figure in words.split(", ")}
        if "All else" not in source:
            assert named >= {figure for figure in FIGURES if figure in profile}, source
    numbers, wrong = network.parse(profile.get("network", {}))
    assert not wrong
    assert not profile.get("network") or {"rate_up", "rate_down"} <= set(numbers)


def test_a_profiles_memory_is_what_the_device_can_give() -> None:
    """A board of 4 GB shows some 3.7 GB, of which system, engine, SuperNode and exporters have their part."""
    known = {name: each for name, each in inventory.profiles().items() if " GB" in each["source"]}
    assert {"rpi3", "rpi4", "rpi5", "jetson-nano", "jetson-orin-nano", "laptop"} <= known.keys()
    for name, profile in known.items():
        ram = int(re.findall(r"(\d+) GB", profile["source"])[0]) * 1024
        given = inventory.memory_bytes(profile["memory"]) / 2**20
        assert given == (0.9 * ram - 384) // 128 * 128, name


def test_there_are_published_testbeds() -> None:
    assert len(PUBLISHED) >= 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_testbed_names_its_source_and_what_differs(name: str) -> None:
    head = re.match(r"(?:#.*\n)+", text(name))
    assert head and "# What is different: " in head[0]
    others = {re.sub(r"172\.28\.\d+", "SUBNET", text(each, "group_vars/testbed.yml")) for each in (name, "virtual")}
    assert len(others) == 1


def test_no_two_labs_have_a_subnet() -> None:
    labs = [name for name in new_inventory.templates() if new_inventory.is_virtual(name)]
    subnets = {match[0] for name in labs if (match := re.search(r"172\.28\.\d+", text(name)))}
    assert len(subnets) == len(labs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_testbed_fits_two_cores_at_the_scale_that_it_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = re.search(rf"^#   fltestbed init lab --from {name} --scale ([\d.]+)$", text(name), re.MULTILINE)
    assert named
    whole = inventory.load(INVENTORIES / name)
    scale = float(named[1])
    small = inventory.load(new_inventory.copy("lab", name, scale))
    assert sum(client["cpus"] for client in small.clients) <= 2
    assert sum(client["memory"] + 384 * 2**20 for client in small.clients) + 2 * 2**30 <= 8 * 2**30
    for before, after in zip(whole.clients, small.clients, strict=True):
        assert after["client"] == before["client"] and after["settings"] == before["settings"]
        assert after["cpus"] == pytest.approx(max(0.1, before["cpus"] * scale), abs=0.001)
        assert after["memory"] == pytest.approx(max(512 * 2**20, before["memory"] * scale), abs=2**20)


def test_the_published_figures() -> None:
    """As the sources have them: Flower's example, FLTK's templates, FedAdapt's config.py."""

    def limits(name: str) -> list[tuple[Any, ...]]:
        clients = inventory.load(INVENTORIES / "published" / name).clients
        return [
            (client["client"], client["cpus"], client["memory"] / 2**30, *client["settings"].values())
            for client in clients
        ]

    assert limits("flower-docker-heterogeneity") == [
        ("client-1", 4, 3, 32, 0.001),
        ("client-2", 1, 6, 256, 0.05),
        ("client-3", 3, 4, 64, 0.02),
        ("client-4", 2.5, 5, 128, 0.09),
    ]
    assert {(name[:-2], cpus, memory) for name, cpus, memory in limits("fltk")} == {
        ("default", 2, 2),
        ("medium", 1, 1),
        ("slow", 0.5, 1),
    }
    profiles, fedadapt = inventory.profiles(), limits("fedadapt")
    for name, profile in {
        "pi41": "rpi4",
        "pi42": "rpi4",
        "jetson": "jetson-nano",
        "pi31": "rpi3",
        "pi32": "rpi3",
    }.items():
        [(_, cpus, memory, *settings)] = [each for each in fedadapt if each[0] == name]
        assert cpus == pytest.approx(profiles[profile]["cpus"] * profiles[profile]["speed"])
        assert memory * 2**30 == inventory.memory_bytes(profiles[profile]["memory"])
        assert settings == [100, 0.01]
