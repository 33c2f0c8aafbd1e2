"""What testbed_record and testbed_undo decide without a host: the rest is in tests/e2e/test_purge.py."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible.utils.vars import merge_hash
from ansible_modules import load

record = load("modules", "testbed_record")
undo = load("modules", "testbed_undo")
shared = record.testbed_record

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"debug": True}),
    ({"debug": True}, {}),
    ({"debug": True}, {"debug": True}),
    ({"debug": False}, {"debug": True}),
    ({"labels": ["b", "a"]}, {"labels": ["a"]}),
    ({"labels": ["a"]}, {"labels": ["b"]}),
    ({"labels": []}, {"labels": ["b"]}),
    ({"log-opts": {"max-size": "5m"}}, {"log-opts": {"max-file": "3"}, "dns": ["192.0.2.1"]}),
    ({"log-opts": {}}, {"log-opts": {"max-file": "3"}}),
    ({"log-opts": {"max-file": "2"}}, {"log-opts": {"max-file": "3"}}),
    ({"hosts": "one"}, {"hosts": ["two"]}),
]


def merge(before: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return what the role docker writes."""
    merged: dict[str, Any] = merge_hash(before, options, recursive=True, list_merge="append_rp")
    return merged


@pytest.mark.parametrize(("before", "options"), CASES, ids=str)
def test_merged_options_come_out_again(before: dict[str, Any], options: dict[str, Any]) -> None:
    assert undo.without(merge(before, options), options, before) == before


def test_what_the_user_changed_since_stays() -> None:
    before = {"labels": ["theirs"]}
    options = {"labels": ["ours"], "debug": True, "log-opts": {"max-file": "3"}}
    now = merge(before, options) | {"debug": False, "mtu": 1400}
    now["labels"].append("later")
    assert undo.without(now, options, before) == {
        "labels": ["theirs", "later"],
        "debug": False,
        "mtu": 1400,
    }


def test_options_of_two_deployments_are_kept_together() -> None:
    first = {"labels": ["a"], "log-opts": {"max-file": "3"}}
    second = {"labels": ["b"], "log-opts": {"max-size": "5m"}}
    assert record.merged(first, second) == {"labels": ["a", "b"], "log-opts": {"max-file": "3", "max-size": "5m"}}
    assert first == {"labels": ["a"], "log-opts": {"max-file": "3"}}


def test_chains_are_read_with_their_table() -> None:
    saved = (
        "# c\n*nat\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n-A OUTPUT -j DOCKER\nCOMMIT\n*filter\n:FORWARD DROP [2:9]\n"
    )
    assert shared.chains(saved) == {"nat OUTPUT": "ACCEPT", "nat DOCKER": "-", "filter FORWARD": "DROP"}


@pytest.mark.parametrize(
    ("rule", "ours"),
    [
        ("-A FORWARD -j DOCKER-USER", True),
        ("-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", True),
        ("-A POSTROUTING -s 172.18.0.0/16 ! -o br-0123456789ab -j MASQUERADE", True),
        ("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", True),
        ("-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT", False),
        ("-A FORWARD -i br-lan -j ACCEPT", False),
        ("-A INPUT -p tcp --dport 22 -j ACCEPT", False),
    ],
)
def test_only_the_engines_rules_are_its_rules(rule: str, ours: bool) -> None:
    assert bool(undo.DOCKER_RULE.search(rule)) is ours


def test_states_of_paths(tmp_path: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    states = {name: shared.state_of(tmp_path / name) for name in ("full", "full/file", "empty", "dangling", "none")}
    assert states == {
        "full": "there",
        "full/file": "there",
        "empty": "empty",
        "dangling": "there",
        "none": "absent",
    }


def test_a_record_is_whole_and_private(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "RECORD", tmp_path / "lib" / "record.json")
    assert shared.read() is None and shared.testbeds() == []
    shared.write({"testbeds": ["b", "a"]})
    assert shared.testbeds() == ["a", "b"]
    assert shared.RECORD.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in shared.RECORD.parent.iterdir()] == ["record.json"]


class Host:
    """An AnsibleModule for `Undo`, of a purge in check mode."""

    check_mode = True
    params: ClassVar[dict[str, Any]] = {
        "testbed": "lab",
        "project": "fltestbed-lab",
        "record": None,
        "owner": "a",
        "force": False,
        "purge": False,
    }

    @staticmethod
    def get_bin_path(name: str) -> str | None:
        return name


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The way back of a host on which the engine does not run."""
    monkeypatch.setattr(shared, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(undo, "ENGINE_DATA", tmp_path)

    def get(path: str) -> None:
        raise undo.EngineUnreachable("nobody listens")

    monkeypatch.setattr(undo, "get", get)
    monkeypatch.setattr(Host, "params", dict(Host.params))
    return undo.Undo(Host)


def test_what_others_keep_in_a_stopped_engine_is_not_removed(stopped: Any, tmp_path: Path) -> None:
    labels = {"ours": {undo.PROJECT: "fltestbed-lab"}, "fltestbed-build-1": {}, "database": {}}
    for name, own in labels.items():
        folder = tmp_path / "containers" / name
        folder.mkdir(parents=True)
        (folder / "config.v2.json").write_text(json.dumps({"Name": f"/{name}", "Config": {"Labels": own or None}}))
    for name in ("rows", "fltestbed-lab_state"):
        (tmp_path / "volumes" / name / "_data").mkdir(parents=True)
    with pytest.raises(undo.Refused, match=r"not fltestbed's: container database, volume rows\. Start it"):
        stopped.require_nobody_else()
    shutil.rmtree(tmp_path / "containers" / "database")
    shutil.rmtree(tmp_path / "volumes" / "rows")
    stopped.require_nobody_else()


def test_files_of_others_stay(stopped: Any, tmp_path: Path) -> None:
    disk, ours = tmp_path / "disk", tmp_path / "ours"
    (disk / "photos").mkdir(parents=True)
    (disk / "photos/cat.jpg").touch()
    record.claim(ours)
    for folder in (disk, ours):
        stopped.module.params["paths"] = [str(folder)]
        stopped.remove_testbed()
    assert stopped.done == [f"remove {ours}"]


def test_a_testbed_with_other_keys_stays_unless_it_is_forced(stopped: Any, tmp_path: Path) -> None:
    (tmp_path / ".fltestbed-owner.json").write_text(json.dumps({"id": "b", "name": "bob@lab"}))
    stopped.module.params["paths"] = [str(tmp_path)]
    with pytest.raises(undo.Refused, match="bob@lab deployed with other keys"):
        stopped.remove_testbed()
    stopped.module.params["force"] = True
    stopped.remove_testbed()
    assert stopped.done == [f"remove {tmp_path}"]


def test_images_in_an_engine_that_does_not_run_are_not_forgotten(stopped: Any) -> None:
    stopped.record = {"testbeds": ["lab"], "before": {"docker": True}, "packages": [], "images": ["fltestbed/app:1"]}
    with pytest.raises(undo.Refused, match="images can't be removed"):
        stopped.purge()


def test_a_firewall_that_came_later_stays(stopped: Any) -> None:
    saved = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n"
    stopped.clean_firewall("iptables", saved, {})
    assert stopped.done == [
        "iptables -F DOCKER",
        "iptables -X DOCKER",
        "put the policy of iptables's FORWARD back",
    ]
