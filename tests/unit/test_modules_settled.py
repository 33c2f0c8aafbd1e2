"""testbed_settled: what counts as state, and how a difference is said. The containers' part runs end to end."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

settled = load("modules", "testbed_settled")
CONTAINER = {"id": "1", "image": "a", "limits": [500000000, 0, 0, 1024, 1024], "up": True}
LEFT: dict[str, Any] = {"inputs": "x", "files": {"/f": "100644 0 abc"}, "containers": {"client-pi": CONTAINER}}


def tree(root: Path) -> dict[str, str]:
    found: dict[str, str] = settled.describe_files(root, [str(root.parent / "daemon.json")])
    return found


def test_files_of_the_state_are_seen_and_what_runs_change_is_not(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    for name in ("compose.yml", "proxy/nginx.conf", "data/pi/1.npz", "runs/a/run.json", "state/state.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "daemon.json").write_text("{}")
    before = tree(root)
    assert sorted(before) == [str(tmp_path / "daemon.json"), str(root / "compose.yml"), str(root / "proxy/nginx.conf")]
    (root / "runs/b").mkdir()
    (root / "runs/b/run.json").write_text("{}")
    assert tree(root) == before
    (root / "compose.yml").chmod(0o600)
    assert tree(root).keys() == before.keys()
    assert tree(root) != before


def test_a_large_file_is_told_by_size_and_time(tmp_path: Path) -> None:
    blob = tmp_path / "images" / "blob"
    blob.parent.mkdir()
    blob.write_bytes(bytes(settled.HASHED_BYTES + 1))
    before = settled.describe_files(tmp_path, [])
    assert str(settled.HASHED_BYTES + 1) in before[str(blob)]
    blob.write_bytes(bytes(settled.HASHED_BYTES + 2))
    assert settled.describe_files(tmp_path, []) != before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"inputs": "y"}, ["the inventory, the keys or fltestbed itself changed"]),
        ({"files": {}}, ["/f is gone"]),
        ({"files": {"/f": "100600 0 abc"}}, ["/f was changed"]),
        ({"files": LEFT["files"] | {"/g": "100644 0 d"}}, ["/g is new"]),
        ({"containers": {}}, ["container client-pi is gone"]),
        (
            {"containers": {"client-pi": CONTAINER | {"up": False}}},
            ["container client-pi does not run or is not healthy"],
        ),
        ({"containers": {"client-pi": CONTAINER | {"id": "2"}}}, ["container client-pi was replaced"]),
        (
            {"containers": {"client-pi": CONTAINER | {"limits": [0, 0, 0, 0, 0]}}},
            ["the limits of container client-pi were changed"],
        ),
        ({"containers": LEFT["containers"] | {"x": CONTAINER}}, ["container x is new"]),
    ],
)
def test_each_difference_has_its_words(change: dict[str, Any], said: list[str]) -> None:
    assert settled.differences(LEFT, copy.deepcopy(LEFT) | change) == said


def test_a_container_that_was_starting_when_the_record_was_made_is_the_same_one_later() -> None:
    starting = LEFT | {"containers": {"client-pi": CONTAINER | {"up": False}}}
    assert settled.differences(starting, LEFT) == []


def test_only_a_container_with_other_limits_is_to_be_made_anew() -> None:
    limits = {"client-pi": CONTAINER | {"limits": [0, 0, 0, 0, 0]}}
    assert settled.changed_services(LEFT, LEFT | {"containers": limits}, []) == ["client-pi"]
    throttled = [{"kind": "throttle", "client": "pi"}]
    assert settled.changed_services(LEFT, LEFT | {"containers": limits}, throttled) == []
    replaced = {"client-pi": CONTAINER | {"id": "2", "limits": [0, 0, 0, 0, 0]}}
    assert settled.changed_services(LEFT, LEFT | {"containers": replaced}, []) == []


@pytest.mark.parametrize(
    ("conditions", "network", "said"),
    [
        ([], {}, []),
        ([{"kind": "network", "parameters": {"delay": 0.1}, "lost": False}], {"delay": 0.1}, []),
        ([{"kind": "network", "parameters": {"delay": 0.1}, "lost": True}], {"delay": 0.1}, [settled.OTHER_NETWORK]),
        ([{"kind": "network", "parameters": {"delay": 0.1}, "lost": False}], {}, [settled.OTHER_NETWORK]),
        ([], {"delay": 0.1}, [settled.OTHER_NETWORK]),
        ([{"kind": "kill", "text": "pi killed", "since": "10:00", "lost": False}], {}, ["pi killed since 10:00"]),
    ],
)
def test_conditions_that_are_not_the_inventorys_are_said(
    conditions: list[dict[str, Any]], network: dict[str, float], said: list[str]
) -> None:
    assert settled.changed_conditions(conditions, network) == said


def test_a_host_without_a_record_is_not_settled(tmp_path: Path) -> None:
    answer = run(settled, root=str(tmp_path / "lab"), project="fltestbed-lab", inputs="x", owner="me")
    assert (answer["settled"], answer["differences"]) == (False, ["no whole deployment has ended here yet"])
