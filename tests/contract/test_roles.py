"""Every role is whole, and its variables are the same in defaults, specification and README."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
WITH_TASKS = [role for role in ROLES if role != "testbed"]  # which is its defaults
SHARED = {"images": {"testbed_images_source"}}  # set for a whole testbed, so named after it

every_role = pytest.mark.parametrize("role", ROLES)
every_role_with_tasks = pytest.mark.parametrize("role", WITH_TASKS)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults(role: str) -> dict[str, Any]:
    return dict(read(ROOT / "roles" / role / "defaults/main.yml") or {})


def entries(role: str) -> dict[str, dict[str, Any]]:
    """Return the specified entry points; what all roles share is one of the role testbed, in a file of its own."""
    files = (ROOT / "roles" / role / "meta").glob("*_specs.yml")
    return {name: spec for file in files for name, spec in read(file)["argument_specs"].items()}


@every_role
def test_a_role_is_whole(role: str) -> None:
    folder = ROOT / "roles" / role
    for name in ("README.md", "defaults/main.yml", "meta/argument_specs.yml", "meta/main.yml", "tasks/main.yml"):
        assert (folder / name).is_file(), name
    meta = read(folder / "meta/main.yml")
    assert meta["galaxy_info"]["description"] and meta["galaxy_info"]["license"] == "MIT"


@every_role
def test_defaults_equal_the_specification(role: str) -> None:
    specified: dict[str, Any] = {}
    for entry, spec in entries(role).items():
        for name, option in (spec.get("options") or {}).items():
            assert not option.get("required"), f"{entry}: {name} has a default, so it cannot be required"
            assert specified.setdefault(name, option["default"]) == option["default"], (
                f"{entry}: {name} has two defaults"
            )
            assert option["description"].endswith("."), f"{entry}: {name} is described in a sentence"
    assert specified == defaults(role)


@every_role_with_tasks
def test_every_entry_point_is_a_task_file(role: str) -> None:
    for entry, spec in entries(role).items():
        assert (ROOT / "roles" / role / "tasks" / f"{entry}.yml").is_file(), entry
        assert spec["short_description"]


@every_role_with_tasks
def test_every_entry_point_that_a_playbook_uses_is_specified(role: str) -> None:
    used = {"main"}
    for playbook in sorted((ROOT / "playbooks").glob("*.yml")):
        for play in read(playbook):
            for task in play.get("tasks", []):
                call = task.get("ansible.builtin.import_role") or task.get("ansible.builtin.include_role") or {}
                if call.get("name") == role:
                    used.add(call.get("tasks_from", "main"))
    assert used <= set(entries(role))


@every_role
def test_variables_start_with_the_roles_name(role: str) -> None:
    for name in set(defaults(role)) - SHARED.get(role, set()):
        assert name.startswith(f"{role}_"), f"{name} is a default"
    constants = ROOT / "roles" / role / "vars/main.yml"
    for name in read(constants) if constants.exists() else ():
        assert re.match(rf"_{role}(_|$)", name), f"{name} is a constant"
    registered: list[str] = []
    for file in sorted((ROOT / "roles" / role).glob("*/*.yml")):
        registered += re.findall(r"^\s*(?:- )?register: (\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    for name in registered:
        assert name.startswith(f"__{role}"), f"{name} is registered"


def test_tables_of_the_pages_are_those_of_the_roles() -> None:
    script = [sys.executable, str(ROOT / "scripts/role_tables.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run python scripts/role_tables.py"


def test_no_role_uses_a_shell() -> None:
    for file in sorted([*(ROOT / "roles").rglob("*.yml"), *(ROOT / "playbooks").glob("*.yml")]):
        assert not re.search(
            r"^\s*(- )?(ansible\.(builtin|legacy)\.)?(shell|raw):", file.read_text(encoding="utf-8"), re.MULTILINE
        ), file
