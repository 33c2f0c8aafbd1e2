"""The filters, and what Flower and TOML make of what they write."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_modules import load
from flwr.common.config import parse_config_args

ROOT = Path(__file__).parents[2]

filters = load("filter", "testbed").FilterModule().filters()

SETTINGS: dict[str, Any] = {
    "device": "pi-1",
    "partition_id": 0,
    "learning_rate": 1e-05,
    "data_fraction": 0.5,
    "momentum": 0.0,
    "batch_size": 32,
    "verbose": True,
    "quiet": False,
    "run": "20260101-120000-a b=c # not a comment",
    "path": "C:\\new\\table",
}


def toml(text: str, keys: list[str]) -> dict[str, Any]:
    """Return `key=value key=value` as TOML reads it, one line a key."""
    lines = text
    for key in keys[1:]:
        lines = lines.replace(f" {key}=", f"\n{key}=", 1)
    return tomllib.loads(lines)


def test_flower_reads_back_what_was_written() -> None:
    written = filters["flower_config"](filters["hyphenated"](SETTINGS))
    wanted = {key.replace("_", "-"): value for key, value in SETTINGS.items()}
    assert parse_config_args([written]) == wanted
    assert toml(written, list(wanted)) == wanted
    assert {key: type(value) for key, value in parse_config_args([written]).items()} == {
        key: type(value) for key, value in wanted.items()
    }


@pytest.mark.parametrize("text", ['say "hello"', '"', "back\\slash\\", '\\"'])
def test_quotes_and_backslashes_are_toml_that_flower_finds_the_end_of(text: str) -> None:
    written = filters["flower_config"]({"key": text, "next_key": 1})
    assert parse_config_args([written]) == {"key": text, "next_key": 1}


HOSTVARS: dict[str, dict[str, Any]] = {
    "pi-2": {"testbed_profile": "rpi"},
    "pi-1": {"testbed_client": {"cpus": 1}},
    "laptop": {"testbed_clients": [{"cpus": 2, "memory": "1g"}, {"cpus": 1, "batch_size": 16}]},
}


def clients(devices: list[str]) -> list[dict[str, Any]]:
    return list(filters["testbed_clients"](devices, HOSTVARS, {"rpi": {"cpus": 4, "memory": "768m"}}, {}))


def test_clients_come_in_the_order_of_the_devices_and_are_numbered() -> None:
    found = clients(["pi-2", "pi-1", "laptop"])
    assert [(row["partition"], row["device"], row["client"]) for row in found] == [
        (0, "pi-2", "pi-2"),
        (1, "pi-1", "pi-1"),
        (2, "laptop", "laptop-1"),
        (3, "laptop", "laptop-2"),
    ]
    assert [(row["cpus"], row["memory"]) for row in found] == [(4, 768 * 2**20), (1, None), (2, 2**30), (1, None)]
    assert [row["client"] for row in clients(["laptop", "pi-2"])] == ["laptop-1", "laptop-2", "pi-2"]


def test_a_mistake_in_the_inventory_is_an_error_of_the_filter() -> None:
    with pytest.raises(AnsibleFilterError, match="no profile 'rpi9'"):
        filters["testbed_clients"](["pi"], {"pi": {"testbed_profile": "rpi9"}}, {}, {})


PREPARED = {
    "experiment": {"rounds": 5},
    "partition_set": "abc",
    "partitions": [
        {
            "device": "pi-1",
            "client": "pi-1",
            "id": 0,
            "path": "/c/0.npz",
            "sha256": "00",
            "examples": 8,
            "held_out": 2,
            "labels": [10],
            "settings": {"batch_size": 8},
        },
        {
            "device": "pi-2",
            "client": "pi-2",
            "id": 1,
            "path": "/c/1.npz",
            "sha256": "11",
            "examples": 8,
            "held_out": 2,
            "labels": [10],
            "settings": {"batch_size": 8},
        },
    ],
    "test_set": {"path": "/c/test.npz", "sha256": "ff", "examples": 100},
}


def test_a_host_holds_its_own_part_and_the_server_the_test_set() -> None:
    shards_of = filters["shards_of"]
    assert shards_of(PREPARED, "pi-1", False) == {"data/pi-1": {"path": "/c/0.npz", "sha256": "00"}}
    assert shards_of(PREPARED, "server", True) == {"test": {"path": "/c/test.npz", "sha256": "ff"}}
    assert set(shards_of(PREPARED, "pi-2", True)) == {"data/pi-2", "test"}
    assert shards_of(PREPARED, "idle", False) == {}


def test_the_plan_names_no_path_of_the_controller() -> None:
    plan = filters["run_plan"](PREPARED, "r1", PREPARED["partitions"])
    assert "/c/" not in str(plan)
    assert plan["run"] == "r1"
    assert plan["test_set"] == {"sha256": "ff", "examples": 100}
    assert plan["clients"][0]["settings"] == {"batch_size": 8}
    assert [(client["client"], client["partition"]["sha256"]) for client in plan["clients"]] == [
        ("pi-1", "00"),
        ("pi-2", "11"),
    ]


def test_the_plan_of_an_app_without_data_names_the_clients() -> None:
    plan = filters["run_plan"](
        {"experiment": None, "partition_set": None, "partitions": [], "test_set": None},
        "r1",
        [{"device": "pi-1", "client": "pi-1-2", "cpus": 1}],
    )
    assert plan["clients"] == [{"device": "pi-1", "client": "pi-1-2", "partition": None, "settings": {}}]
    assert plan["experiment"] is plan["test_set"] is None


def test_a_run_without_data_brings_none() -> None:
    nothing = {"partitions": [], "test_set": None}
    assert filters["shards_of"](nothing, "server", True) == filters["shards_of"](nothing, "pi-1", False) == {}


def test_an_app_goes_as_the_files_that_flower_packs() -> None:
    files = filters["app_files"](str(ROOT / "fl_app"))
    assert {"pyproject.toml", "testbed_app/client.py"} <= set(files)
    client = (ROOT / "fl_app/testbed_app/client.py").read_text()
    assert files["testbed_app/client.py"] == {"content": client}


def test_an_app_lacks_what_the_image_does_not_hold() -> None:
    wanted = {"dependencies": ["flwr>=1.41", "pandas"], "requires_python": ">=3.11"}
    image = {"python": "3.11.2", "machine": "aarch64", "packages": {"flwr": "1.41.0"}}
    assert filters["app_lacks"](wanted, image) == ["pandas (not there)"]


def test_further_requirements_take_the_place_of_the_images_own() -> None:
    own = ["flwr==1.41.0", "numpy==2.2.6", "prometheus-client==0.23.1", "torch==2.13.0"]
    assert filters["with_extra"](own, []) == own
    assert filters["with_extra"](own, ["scikit-learn", "NumPy<2", "Prometheus_Client"]) == [
        *("flwr==1.41.0", "torch==2.13.0"),
        *("scikit-learn", "NumPy<2", "Prometheus_Client"),
    ]
    with pytest.raises(AnsibleFilterError, match="'numpy=>2' is none that pip takes"):
        filters["with_extra"](own, ["numpy=>2"])


def test_every_client_has_a_log_of_both_its_containers() -> None:
    assert filters["client_logs"]([{"client": "pi-1"}]) == [
        {"name": "client-pi-1", "services": ["supernode-pi-1", "client-pi-1"]}
    ]


def watched(*groups: str, cgroup: int = 1, **variables: Any) -> dict[str, Any]:
    probe = {"arch": "aarch64", "cgroup": {"version": cgroup}}
    return {"group_names": ["testbed", *groups], "ansible_facts": {"testbed_probe": probe}} | variables


def test_targets_come_from_the_inventory() -> None:
    hosts = {
        "server": watched("superlink", "monitoring", ansible_host="192.0.2.10"),
        "pi-1": watched("supernodes", ansible_host="192.0.2.21", testbed_profile="rpi4"),
        "pi-2": watched("supernodes", cgroup=2),
        "pi-3": watched("supernodes", cgroup=2, ansible_host="2001:db8::23"),
        "gone": {"group_names": ["supernodes"], "ansible_host": "192.0.2.23"},
    }
    nodes = filters["scrape_targets"](list(hosts), hosts, "server", 9100, "node_exporter", [1])
    assert {target["labels"]["device"]: target["targets"] for target in nodes} == {
        "server": ["host.docker.internal:9100"],
        "pi-1": ["192.0.2.21:9100"],
        "pi-2": ["pi-2:9100"],
        "pi-3": ["[2001:db8::23]:9100"],
        "gone": ["192.0.2.23:9100"],
    }
    labels = {target["labels"]["device"]: target["labels"] for target in nodes}
    assert labels["server"]["group"] == "superlink,monitoring"
    assert labels["pi-1"] == {"device": "pi-1", "profile": "rpi4", "arch": "aarch64", "group": "supernodes"}
    assert labels["gone"]["arch"] == "unknown", "its silence is what an alert is for"
    assert filters["unseen"](list(hosts), hosts) == ["gone"]
    hosts["gone"]["ansible_facts"] = {"testbed_kind": {"arch": "armv7l", "cgroup": {"version": 1}}}
    left_alone = filters["scrape_targets"](["gone"], hosts, "server", 9100, "node_exporter", [1])
    assert left_alone[0]["labels"]["arch"] == "armv7l"
    del hosts["gone"]["ansible_facts"]
    containers = filters["scrape_targets"](list(hosts), hosts, "server", 8080, "cadvisor", [1])
    assert [target["labels"]["device"] for target in containers] == ["server", "pi-1"]


def test_an_exporters_certificate_has_every_name_that_is_dialled() -> None:
    hosts = {"pi-1": {"ansible_host": "192.0.2.21"}, "pi-2": {}}
    assert filters["exporter_names"](list(hosts), hosts) == {
        "pi-1": ["pi-1", "192.0.2.21", "host.docker.internal"],
        "pi-2": ["pi-2", "host.docker.internal"],
    }


def test_prometheus_dials_a_device_by_another_name_than_ssh() -> None:
    """An alias of ~/.ssh/config, or a name of mDNS, is none that a container knows."""
    hosts = {"pi-1": watched("supernodes", ansible_host="pi-1.local", testbed_exporter_address="192.0.2.21")}
    (target,) = filters["scrape_targets"](["pi-1"], hosts, "server", 9100, "node_exporter", [1])
    assert target["targets"] == ["192.0.2.21:9100"]
    assert filters["exporter_names"](["pi-1"], hosts)["pi-1"] == ["pi-1", "192.0.2.21", "host.docker.internal"]
    assert filters["exporter_addresses"](["pi-1"], hosts) == {"pi-1": "192.0.2.21"}


def test_an_image_is_named_after_what_it_is_made_from(tmp_path: Path) -> None:
    archive = tmp_path / "grafana.tar"
    archive.write_text("one")
    recipes: dict[str, Any] = {"prometheus": {"suite": "trixie"}, "grafana": {"archive": str(archive)}}
    first = filters["program_images"](recipes, "base", "/store", "aarch64")
    assert first["prometheus"]["ref"].startswith("fltestbed/prometheus:")
    tag = first["prometheus"]["ref"].partition(":")[2]
    assert first["prometheus"]["layout"] == f"/store/prometheus-{tag}-aarch64"
    assert filters["program_images"](recipes, "base", "/store", "aarch64") == first
    assert filters["program_images"](recipes, "other", "/store", "aarch64")["prometheus"] != first["prometheus"]
    archive.write_text("another")
    assert filters["program_images"](recipes, "base", "/store", "aarch64")["grafana"] != first["grafana"]
    archive.unlink()
    with pytest.raises(AnsibleFilterError, match="archive of grafana cannot be read"):
        filters["program_images"](recipes, "base", "/store", "aarch64")


def test_the_servers_words_on_a_run_are_in_order() -> None:
    variables = {
        "__run_submitted": {"run": {"round": 0}},
        "__run_followed": {"results": [{"run": {"round": 1}}, {"run": {"round": 2}}]},
        "__run_watched": {"results": [], "skipped": True},
    }
    assert [record["round"] for record in filters["run_records"](variables)] == [0, 1, 2]
    assert filters["run_records"]({}) == []


def test_each_client_is_calibrated_with_its_own_shard_and_batch_sizes() -> None:
    prepared = {
        "partitions": [
            {"client": "pi-1", "sha256": "aa", "settings": {"width": 1.0}},
            {"client": "pi-2", "sha256": "bb", "settings": {"width": 0.5}},
        ],
        "run_config": {
            "model": "cnn",
            "seed": 1,
            "optimizer": "sgd",
            "learning-rate": 0.1,
            "momentum": 0.9,
            "batch-size": 32,
        },
    }
    (found,) = filters["calibrations"]([{"client": "pi-2"}], prepared, {"pi-2": [8, 16]})
    assert found["client"] == "pi-2"
    assert found["setup"] == {
        "sha256": "bb",
        "width": 0.5,
        "batch_sizes": [8, 16],
        "seconds": 3,
        "model": "cnn",
        "seed": 1,
        "optimizer": "sgd",
        "learning-rate": 0.1,
        "momentum": 0.9,
    }
