"""What an inventory folder's files say before Ansible reads them: whether they are YAML, and shaped as an inventory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters
from typing import TYPE_CHECKING

from fltestbed.findings import Finding
from fltestbed.paths import nearest
from fltestbed.yaml_files import NotYaml, compose, duplicates, line

if TYPE_CHECKING:
    import yaml

GROUPS = ("testbed", "superlink", "supernodes", "monitoring")
_SECTIONS = ("hosts", "vars", "children")
_VARIABLE_FOLDERS = ("group_vars", "host_vars")
_YAML = (".yml", ".yaml", ".json")
_RANGE = re.compile(r"\[(\d{0,9}|[A-Za-z]):(\d{1,9}|[A-Za-z])(?::0*[1-9]\d{0,8})?\]", re.ASCII)


@dataclass
class Files:
    """Where groups, hosts and files of variables are written, and what keeps Ansible from reading the folder."""

    groups: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    variables: dict[tuple[str, str], str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def shown(path: Path) -> str:
    """Return a path as a person reads it: relative to the working directory when it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read(folder: Path) -> Files:
    """Read a folder's YAML. Other files (INI, scripts) are left to Ansible."""
    files, sources = Files(), 0
    for file in sorted(folder.rglob("*")):
        kind = next((name for name in _VARIABLE_FOLDERS if name in file.relative_to(folder).parts[:-1]), "")
        suffixes = (*_YAML, "") if kind else (*_YAML, "", ".ini")
        if not file.is_file() or file.name.startswith(".") or file.suffix not in suffixes:
            continue
        sources += not kind
        if kind:
            owner = file.relative_to(folder / kind).parts[0] if file.is_relative_to(folder / kind) else file.name
            files.variables.setdefault((kind, owner.partition(".")[0]), shown(file))
        elif file.suffix not in _YAML:
            continue
        reader = _Reader(file, files)
        try:
            root = compose(file)
        except NotYaml as error:
            where = f"{shown(file)}:{error.line}" if error.line else shown(file)
            fix = "this is not YAML in UTF-8; look at indentation (no tabs), colons, quotes and brackets"
            files.findings.append(Finding("error", "", where, str(error), fix))
            continue
        for key, first in duplicates(root):
            reader.refuse(key, f"{key.value!r} is here twice, first in line {first}", "keep one of them")
        if not kind:
            reader.read_inventory(root)
    if not sources:
        what, fix = "there is no inventory in the folder", "fltestbed init NAME writes one; its file is hosts.yml"
        files.findings.append(Finding("error", "", shown(folder), what, fix))
    return files


class _Reader:
    """Reads one file's nodes into `files`."""

    def __init__(self, file: Path, files: Files) -> None:
        self._file = shown(file)
        self._files = files

    def _where(self, node: "yaml.Node") -> str:
        return f"{self._file}:{line(node)}"

    def refuse(self, node: "yaml.Node", what: str, fix: str) -> None:
        """Note that something is wrong where a node begins."""
        self._files.findings.append(Finding("error", "", self._where(node), what, fix))

    def read_inventory(self, root: "yaml.Node | None") -> None:
        """Note the groups and hosts of an inventory file; refuse what Ansible would not take for one."""
        import yaml

        if not isinstance(root, yaml.MappingNode):
            what, fix = "the file holds no mapping of groups", "begin with `testbed:`, as fltestbed init does"
            self._files.findings.append(Finding("error", "", self._file, what, fix))
        elif "plugin" not in {key.value for key, _ in root.value}:
            for key, value in root.value:
                self._read_group(key, value)

    def _read_group(self, name: "yaml.Node", group: "yaml.Node") -> None:
        self._files.groups.setdefault(name.value, self._where(name))
        for key, section in self._entries(group, f"group {name.value}"):
            if key.value not in _SECTIONS:
                fix = (
                    f"put {key.value} below `children:` of {name.value}"
                    if key.value in GROUPS
                    else nearest(key.value, _SECTIONS)
                )
                self.refuse(key, f"group {name.value} has an unknown key {key.value!r}", fix)
                continue
            for inner, value in self._entries(section, f"{key.value} of group {name.value}"):
                if key.value == "children":
                    self._read_group(inner, value)
                elif key.value == "hosts":
                    self._read_host(inner)
                    list(self._entries(value, f"host {inner.value}"))

    def _read_host(self, name: "yaml.Node") -> None:
        self._files.hosts.setdefault(name.value, self._where(name))
        if name.tag != "tag:yaml.org,2002:str":
            self.refuse(
                name, f"a host cannot be called {name.value}, which is no text", "use a name that begins with a letter"
            )
        elif "[" in name.value:
            self._check_range(name)

    def _check_range(self, name: "yaml.Node") -> None:
        """Refuse what Ansible does not expand, and what it expands to no host."""
        bounds = [(begin or "0", end) for begin, end in _RANGE.findall(name.value)]
        if set("[]") & set(_RANGE.sub("", name.value)) or not all(_are_of_a_kind(*each) for each in bounds):
            self.refuse(name, f"{name.value!r} is no range of hosts", "write it like pi-[1:4], or each host by itself")
        elif any(_place(begin) > _place(end) for begin, end in bounds):
            self.refuse(name, f"{name.value!r} is a range that no host is in", "write the lower end first, as in [1:5]")

    def _entries(self, node: "yaml.Node", what: str) -> Iterator[tuple["yaml.Node", "yaml.Node"]]:
        """Yield keys and values of a mapping, nothing of an empty node; refuse anything else."""
        import yaml

        if isinstance(node, yaml.MappingNode):
            yield from node.value
        elif not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:null":
            if isinstance(node, yaml.SequenceNode):
                self.refuse(
                    node, f"{what} must be a mapping, not a list", "write each as a key, `name:`, without a hyphen"
                )
            else:
                self.refuse(node, f"{what} must be a mapping, not {node.value!r}", "write `key: value` or nothing")


def _are_of_a_kind(begin: str, end: str) -> bool:
    """Return whether the ends of a range are both letters or both numbers; after a leading 0, of one length."""
    padded = len(begin) > 1 and begin.startswith("0")
    return begin.isdigit() == end.isdigit() and (len(begin) == len(end) or not padded)


def _place(bound: str) -> int:
    """Return the place of a range's end in Ansible's order."""
    return int(bound) if bound.isdigit() else ascii_letters.index(bound)
