"""A Flower app as its folder describes it: what Flower packs of it, the values that it takes, what it has to import."""

import io
import re
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from pathspec import GitIgnoreSpec

from fltestbed.errors import AppError
from fltestbed.paths import nearest

Value = str | int | float | bool
"""A value of an app's configuration, as Flower knows them."""

LARGEST = 10 * 2**20
"""Bytes, zipped, of the largest app that Flower takes."""

_PACKED = GitIgnoreSpec.from_lines(["*.py", "*.toml", "*.md", "*.yaml", "*.yml", "*.json", "*.jsonl", "/LICENSE"])
_LEFT_OUT = GitIgnoreSpec.from_lines(
    [".*", "__pycache__/", "test_*.py", "*_test.py", "*.egg"]
    + [f"/{folder}/" for folder in ("build", "eggs", "lib", "lib64", "parts", "env", "venv", "ENV", "*.bak")]
)


@dataclass(frozen=True)
class App:
    """A Flower app that passed every check which needs no host.

    `config` has its defaults, nested keys with dots; `files` is what goes to the server: content by path.
    """

    path: Path
    name: str
    version: str
    requires_python: str
    dependencies: tuple[str, ...]
    config: Mapping[str, Value]
    files: Mapping[str, str]

    @property
    def reports(self) -> bool:
        """Whether it is written for fltestbed: takes the run's name, and writes the rows of its rounds itself."""
        return "run" in self.config

    def overrides(self, settings: Sequence[str], keys: Iterable[str], also: Iterable[str] = ()) -> dict[str, Value]:
        """Return `settings`, a list of `key=value`, as values of those `keys` of the app that may be set.

        `also` are other keys that could have been meant. Raises AppError.
        """
        values = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise AppError(f"setting {setting!r}: is not of the form key=value", "write for example rounds=2")
            if key not in keys:
                raise AppError(f"setting {setting!r}: there is no key {key!r}", nearest(key, {*keys, *also}))
            values[key] = _like(self.config[key], text, f"setting {setting!r}")
        return values


def load(folder: Path) -> App:
    """Return the Flower app in a folder. Raises AppError."""
    file = folder / "pyproject.toml"
    if not file.is_file():
        lack = "it has no pyproject.toml" if folder.is_dir() else "there is no such folder"
        raise AppError(f"{folder}: is no Flower app: {lack}", "give the folder that the app's pyproject.toml is in")
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AppError(f"{file}: is not valid TOML: {error}", "correct the file") from error
    project = _table(tree, file, "project", needs=("name", "version"))
    flower = _table(tree, file, "tool", "flwr", "app", needs=("publisher",))
    components = _table(tree, file, "tool", "flwr", "app", "components", needs=("serverapp", "clientapp"))
    files = _files(folder, flower)
    for key in ("serverapp", "clientapp"):
        module = components[key].partition(":")[0].replace(".", "/")
        if not {f"{module}.py", f"{module}/__init__.py"} & files.keys():
            raise AppError(
                f"{file}: {key} is {components[key]!r}, but there is no {module}.py among the files that Flower packs",
                "write package.module:name; the module has to be in the app's folder, and not left out by .gitignore",
            )
    return App(
        path=folder.resolve(),
        name=project["name"],
        version=project["version"],
        requires_python=project.get("requires-python", ""),
        dependencies=_requirements(project, file),
        config=dict(_flat(flower.get("config", {}), file)),
        files=files,
    )


def lacking(dependencies: Iterable[str], requires_python: str, image: Mapping[str, Any]) -> list[str]:
    """Return what an image does not hold of an app's dependencies, each as `requirement (what is there)`.

    `image` has `python` and `machine`, as Python and `uname -m` say them, and `packages`, versions by name. Extras are
    taken as there where their package is: flwr's are for simulations alone.
    """
    # Every container has a part of fltestbed.
    held_there = {"fltestbed": version("fltestbed"), **image["packages"]}
    packages = {canonicalize_name(name): held for name, held in held_there.items()}
    environment = {
        "python_version": ".".join(image["python"].split(".")[:2]),
        "python_full_version": image["python"],
        "platform_machine": image["machine"],
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "extra": "",
    }
    found = []
    if not SpecifierSet(requires_python).contains(image["python"], prereleases=True):
        found.append(f"Python {requires_python} (there is {image['python']})")
    for requirement in map(Requirement, dependencies):
        held = packages.get(canonicalize_name(requirement.name))
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        if held is None:
            found.append(f"{requirement} (not there)")
        elif not requirement.specifier.contains(held, prereleases=True):
            found.append(f"{requirement} (there is {held})")
    return found


def _table(tree: Mapping[str, Any], file: Path, *way: str, needs: tuple[str, ...]) -> dict[str, Any]:
    """Return a table of pyproject.toml, which has to have texts under the keys `needs`."""
    table: Any = tree
    for name in way:
        table = table.get(name, {}) if isinstance(table, Mapping) else {}
    missing = [key for key in needs if not (isinstance(table, dict) and isinstance(table.get(key), str))]
    if missing:
        raise AppError(
            f"{file}: is not that of a Flower app: [{'.'.join(way)}] lacks {' and '.join(missing)}",
            "it needs name and version in [project], publisher in [tool.flwr.app], "
            "and serverapp and clientapp in [tool.flwr.app.components]",
        )
    return dict(table)


def _files(folder: Path, flower: Mapping[str, Any]) -> dict[str, str]:
    """Return what Flower packs of an app, and a stand-in for what else it looks for: content by path.

    Flower refuses a pattern of fab-exclude that matches nothing, so one file that it is about comes along, empty.
    """
    ignored = folder / ".gitignore"
    try:
        patterns = ignored.read_text(encoding="utf-8").splitlines() if ignored.is_file() else []
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        names = list(GitIgnoreSpec.from_lines(patterns).match_files(names, negate=True))
        names = [name for name in _PACKED.match_files(names) if not (folder / name).is_symlink()]
        chosen = set(names) - set(_LEFT_OUT.match_files(names))
        if "fab-include" in flower:
            chosen &= set(GitIgnoreSpec.from_lines(flower["fab-include"]).match_files(names))
        stand_ins = []
        for pattern in flower.get("fab-exclude", []):
            excluded = sorted(GitIgnoreSpec.from_lines([pattern]).match_files(names))
            chosen -= set(excluded)
            stand_ins += excluded[:1]
        chosen.add("pyproject.toml")
        files = dict.fromkeys(stand_ins, "") | {name: (folder / name).read_text("utf-8") for name in sorted(chosen)}
    except UnicodeDecodeError as error:
        raise AppError(f"{folder}: one of the app's files is not UTF-8: {error}", "convert it") from error
    except (TypeError, ValueError) as error:
        raise AppError(f"{folder}: .gitignore, fab-include or fab-exclude: {error}", "correct the pattern") from error
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    if packed.tell() > LARGEST:
        largest = sorted(files, key=lambda name: len(files[name]), reverse=True)[:3]
        raise AppError(
            f"{folder}: packed, the app has {packed.tell() / 2**20:.1f} MB, and Flower takes {LARGEST >> 20} MB",
            f"the largest files are {', '.join(largest)}: take what is no code out of the folder, or name it in "
            ".gitignore or in fab-exclude of [tool.flwr.app]",
        )
    return files


def _requirements(project: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    dependencies = project.get("dependencies", [])
    try:
        SpecifierSet(project.get("requires-python", ""))
        return tuple(str(Requirement(dependency)) for dependency in dependencies)
    except (InvalidRequirement, InvalidSpecifier, TypeError, AttributeError) as error:
        raise AppError(
            f"{file}: [project]: dependencies or requires-python: {str(error).splitlines()[0]}",
            "write them as pip takes them",
        ) from error


def _flat(config: Any, file: Path, prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in config.items() if isinstance(config, dict) else [("", None)]:
        if isinstance(value, dict):
            yield from _flat(value, file, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            yield f"{prefix}{key}", value
        else:
            raise AppError(
                f"{file}: [tool.flwr.app.config]: {prefix}{key} is {value!r}",
                "Flower takes texts, numbers and booleans",
            )


def _like(default: Value, text: str, where: str) -> Value:
    """Return a text as a value of the same type as a default."""
    if isinstance(default, str):
        if re.search(r"""['\n]""", text):
            raise AppError(f"{where}: Flower takes no ' and no line break in a text", "write it otherwise")
        return text
    kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.strip().lower()]
        return type(default)(text)
    except (ValueError, KeyError) as error:
        raise AppError(f"{where}: must be {kind}, as the app's default {default!r} is", f"write {kind}") from error
