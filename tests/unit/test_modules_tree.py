"""testbed_tree, on a real folder."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the module gives files to users, which root alone may")

CANARY = "canary-51b7"
FILES = {
    "compose.yml": {"content": "services: {}\n"},
    "proxy/nginx.conf": {"content": "events {}\n"},
    "proxy/server.key": {"uid": 10001},
}
SECRETS = {"proxy/server.key": CANARY}
tree = load("modules", "testbed_tree")


def deliver(root: Path, *, check: bool = False, **changes: Any) -> dict[str, Any]:
    params = {
        "root": str(root),
        "files": FILES,
        "secrets": SECRETS,
        "directories": {"state": {"mode": "0700", "uid": 10001}},
    }
    return run(tree, check=check, **(params | changes))


def facts(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.read_text() if path.is_file() else "", stat.S_IMODE(status.st_mode), status.st_uid


def everything(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def test_files_land_with_content_mode_and_owner(tmp_path: Path) -> None:
    answer = deliver(tmp_path)
    assert answer["changed"]
    assert answer["written"] == ["state/", "compose.yml", "proxy/nginx.conf", "proxy/server.key"]
    assert facts(tmp_path / "compose.yml") == ("services: {}\n", 0o644, 0)
    assert facts(tmp_path / "proxy/server.key") == (CANARY, 0o600, 10001)
    assert facts(tmp_path / "state") == ("", 0o700, 10001)


def test_containers_can_enter_the_folders_whatever_the_hosts_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        deliver(tmp_path / "new")
    finally:
        os.umask(before)
    assert [facts(tmp_path / name)[1] for name in ("new", "new/proxy")] == [0o755, 0o755]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    deliver(tmp_path)
    before = everything(tmp_path)
    answer = deliver(tmp_path)
    assert (answer["changed"], answer["written"], answer["removed"]) == (False, [], [])
    assert everything(tmp_path) == before


def test_check_mode_says_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "testbed"
    rehearsed = deliver(root, check=True)
    assert not root.exists()
    real = deliver(root)
    assert [rehearsed[key] for key in ("changed", "written", "removed", "diff")] == [
        real[key] for key in ("changed", "written", "removed", "diff")
    ]


def test_check_mode_keeps_what_would_be_removed(tmp_path: Path) -> None:
    deliver(tmp_path)
    before = everything(tmp_path)
    answer = deliver(tmp_path, check=True, files={"compose.yml": {"content": "new\n"}}, secrets={})
    assert answer["written"] == ["compose.yml"]
    assert answer["removed"] == ["proxy/nginx.conf", "proxy/server.key"]
    assert everything(tmp_path) == before


def test_what_is_no_longer_named_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    deliver(tmp_path)
    (tmp_path / "proxy/mine.txt").write_text("not ours")
    answer = deliver(tmp_path, files={"compose.yml": FILES["compose.yml"]}, secrets={})
    assert answer["removed"] == ["proxy/nginx.conf", "proxy/server.key"]
    assert sorted(path.name for path in (tmp_path / "proxy").iterdir()) == ["mine.txt"]
    assert not deliver(tmp_path, files={"compose.yml": FILES["compose.yml"]}, secrets={})["changed"]


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    answer = deliver(tmp_path, owner={"id": "a", "name": "ann@lab"})
    assert answer["failed"] and f"testbed_root: {tmp_path}/fltestbed" in answer["msg"]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    (tmp_path / "photos/cat.jpg").unlink()
    assert not deliver(tmp_path, owner={"id": "a", "name": "ann@lab"}).get("failed")


def test_a_folder_is_marked_before_anything_lies_in_it(tmp_path: Path) -> None:
    answer = deliver(tmp_path, owner={"id": "a", "name": "ann"}, directories={"../escaped": {}})
    assert answer["failed"]
    assert not deliver(tmp_path, owner={"id": "a", "name": "ann"}).get("failed")


@pytest.mark.parametrize("name", ["../escaped", "proxy/../../escaped", "/escaped", "."])
@pytest.mark.parametrize("kind", ["files", "directories"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    root = tmp_path / "testbed"
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    answer = deliver(root, **{kind: {name: {"content": "x"} if kind == "files" else {}}}, secrets={})
    assert answer["failed"]
    assert repr(name) in answer["msg"] and str(root) in answer["msg"]
    assert not (tmp_path / "escaped").exists()


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    said = [deliver(tmp_path)]
    said.append(deliver(tmp_path, secrets={"proxy/server.key": f"{CANARY}-new"}))
    (tmp_path / "proxy/server.key").chmod(0o644)
    said.append(deliver(tmp_path))
    said.append(deliver(tmp_path, files={"compose.yml": FILES["compose.yml"]}, secrets={}))
    assert all(answer["changed"] for answer in said)
    assert not [answer for answer in said if CANARY in answer["printed"]]
    assert "services: {}" in said[0]["printed"], "the diff of what is no secret is there"


def test_modes_owners_and_content_are_mended(tmp_path: Path) -> None:
    deliver(tmp_path)
    (tmp_path / "compose.yml").chmod(0o666)
    (tmp_path / "state").chmod(0o777)
    os.chown(tmp_path / "proxy/server.key", 0, 0)
    (tmp_path / "proxy/nginx.conf").write_text("changed by hand\n")
    answer = deliver(tmp_path)
    assert answer["written"] == ["state/", "compose.yml", "proxy/nginx.conf", "proxy/server.key"]
    assert facts(tmp_path / "compose.yml") == ("services: {}\n", 0o644, 0)
    assert facts(tmp_path / "state") == ("", 0o700, 10001)
    assert facts(tmp_path / "proxy/server.key") == (CANARY, 0o600, 10001)
    assert facts(tmp_path / "proxy/nginx.conf")[0] == "events {}\n"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/compose.yml").symlink_to(tmp_path / "elsewhere")
    deliver(tmp_path / "root")
    assert (tmp_path / "elsewhere").read_text() == "untouched"
    assert not (tmp_path / "root/compose.yml").is_symlink()


def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "compose.yml").mkdir()
    answer = deliver(tmp_path)
    assert answer["failed"]
    assert "compose.yml" in answer["msg"]
    assert not list(tmp_path.rglob(".new-*")), "no half-written file stays"
