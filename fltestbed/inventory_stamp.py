"""A testbed that passed every check is remembered under a hash of all that the checks read, so that they run once."""

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fltestbed.paths import content_dir, state_dir

_ENVIRONMENT = {"HOME", "PWD", "XDG_CACHE_HOME"}  # what the shared defaults read
_PLAIN = ("", ".ini", ".json", ".md", ".txt", ".yaml", ".yml")
_PLUGIN = re.compile(r"""^\s*["']?plugin["']?\s*:""", re.MULTILINE)
_TEMPLATE = re.compile(r"\{[{%](.*?)[}%]\}", re.DOTALL)
_REPEATABLE = re.compile(
    r"""\s*(?:lookup\(\s*["']env["']\s*,\s*["'](?P<name>\w+)["']\s*\)|[a-z_]\w*)(?:\s*\|\s*basename)?\s*"""
)


def key(folder: Path) -> str:
    """Return a hash over an inventory folder and all else that its checks read.

    It is empty for a folder that may say something else the next time: one with a script, a plugin's configuration, or
    a template that is more than a variable or a lookup of the environment.
    """
    digest = hashlib.sha256()
    names = set(_ENVIRONMENT)
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file() or path.suffix not in _PLAIN or path.stat().st_mode & 0o111:
            return ""
        content = path.read_bytes()
        text = content.decode(errors="replace")
        if _PLUGIN.search(text):
            return ""
        for template in _TEMPLATE.findall(text):
            match = _REPEATABLE.fullmatch(template)
            if not match:
                return ""
            names |= {match["name"]} - {None}
        digest.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\0".encode())
    for path in _shared():
        digest.update(path.read_bytes())
    environment = {name: os.environ.get(name) for name in sorted(names)} | {"PWD": str(Path.cwd())}
    digest.update(json.dumps([environment, sys.executable, str(content_dir())]).encode())
    return digest.hexdigest()


def _shared() -> list[Path]:
    """Return the files that bear on the checks of every inventory: defaults, specifications, this code, Ansible."""
    content = content_dir()
    ansible = importlib.util.find_spec("ansible")
    return [
        content / "ansible.cfg",
        *sorted(content.glob("roles/*/defaults/**/*.yml")),
        *sorted(content.glob("roles/*/meta/*_specs.yml")),
        *sorted(Path(__file__).parent.glob("inventory*.py")),
        Path(__file__).with_name("network.py"),
        *(Path(place) / "release.py" for place in (ansible.submodule_search_locations or [] if ansible else [])),
    ]


def recall(testbed: str, wanted: str) -> dict[str, Any] | None:
    """Return what was remembered of a testbed under this key."""
    try:
        stamp: dict[str, Any] = json.loads(_file(testbed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return dict(stamp["testbed"]) if stamp.get("key") == wanted else None


def remember(testbed: str, found: str, content: Mapping[str, Any]) -> None:
    """Keep a testbed under a key, for this user's eyes. Where nothing can be written, nothing is kept."""
    file = _file(testbed)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps({"key": found, "testbed": content}), encoding="utf-8")
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)


def _file(testbed: str) -> Path:
    return state_dir(testbed) / "inventory.json"
