"""YAML read as nodes, which know their lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import yaml


class NotYaml(Exception):
    """A file is no YAML. `line` counts from 1, and is 0 where it is not known."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def compose(file: Path) -> "yaml.Node | None":
    """Return a file's root node, None when it is empty. Raises NotYaml, and OSError when it cannot be read."""
    import yaml

    try:
        root: yaml.Node | None = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise NotYaml(error.problem_mark.line + 1 if error.problem_mark else 0, str(error.problem)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NotYaml(0, str(error).splitlines()[0]) from None
    for mapping in _mappings(root):
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NotYaml(line(key), "a key must be a text; put quotes around what has {{ }}")
    return root


def line(node: "yaml.Node") -> int:
    """Return the line that a node begins in, from 1."""
    return int(node.start_mark.line) + 1


def duplicates(root: "yaml.Node | None") -> Iterator[tuple["yaml.Node", int]]:
    """Yield every key that its mapping had before, and the line where it first was."""
    for mapping in _mappings(root):
        first: dict[str, yaml.Node] = {}
        for key, _ in mapping.value:
            other = first.setdefault(key.value, key)
            if other is not key and key.value != "<<":
                yield key, line(other)


def _mappings(root: "yaml.Node | None") -> Iterator["yaml.MappingNode"]:
    """Yield every mapping in a tree once, aliases or not."""
    import yaml

    seen, left = set(), [root]
    while left:
        node = left.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            left += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
