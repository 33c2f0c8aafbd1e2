"""testbed_shards, on real files."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

shards = load("modules", "testbed_shards")
OWN, OTHER = b"my part of the data", b"somebody else's"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for client in ("pi-1", "pi-2"):
        (tmp_path / client).mkdir()
    (tmp_path / f"pi-1/{sha256(OWN)}.npz").write_bytes(OWN)
    return tmp_path


def look(root: Path, *, check: bool = False) -> dict[str, Any]:
    return run(shards, check=check, root=str(root), shards={"pi-1": sha256(OWN), "pi-2": sha256(OTHER)})


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_what_is_right_stays_and_what_lacks_is_named(root: Path) -> None:
    answer = look(root)
    assert (answer["changed"], answer["missing"], answer["removed"]) == (False, ["pi-2"], [])
    assert files(root) == [f"pi-1/{sha256(OWN)}.npz"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (f"{sha256(OTHER)}.npz", OWN),  # the wrong content below the right name
        (f"{sha256(OTHER)}.npz", OTHER[:-1]),  # truncated
        (f"{sha256(OWN)}.npz", OWN),  # another client's
        (".new-xyz", OTHER),  # half a copy
    ],
)
def test_what_a_client_may_not_have_is_removed(root: Path, name: str, content: bytes) -> None:
    (root / "pi-2" / name).write_bytes(content)
    rehearsed = look(root, check=True)
    assert (root / "pi-2" / name).exists()
    answer = look(root)
    assert answer["changed"] and answer["removed"] == [f"pi-2/{name}"] and answer["missing"] == ["pi-2"]
    assert [answer[key] for key in ("missing", "removed")] == [rehearsed[key] for key in ("missing", "removed")]
    assert files(root) == [f"pi-1/{sha256(OWN)}.npz"]
    assert not look(root)["changed"]


def test_nothing_lacks_when_all_is_there(root: Path) -> None:
    (root / f"pi-2/{sha256(OTHER)}.npz").write_bytes(OTHER)
    answer = look(root)
    assert (answer["changed"], answer["missing"]) == (False, [])
