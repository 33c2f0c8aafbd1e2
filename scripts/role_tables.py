"""Writes the tables that the roles' own files say: the variables in every role's README, the profiles in the docs.

`python scripts/role_tables.py` writes, `--check` names the pages that differ and ends with 1.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
LONGEST = 80  # of a default, in characters; a longer one is looked up in the role


def read(path: Path) -> Any:
    """Return a YAML file's content."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def default(value: object) -> str:
    """Return a default as YAML on one line, or where to find it."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    text = text.removesuffix("...\n").strip()
    if isinstance(value, str) and value:
        text = value
    return f"`{text}`" if len(text) <= LONGEST else "see [defaults](defaults)"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def variables(role: Path) -> str:
    """Return the table of a role's variables, in the order of its specification, each once."""
    options: dict[str, Mapping[str, Any]] = {}
    for specs in sorted((role / "meta").glob("*_specs.yml")):
        for entry in read(specs)["argument_specs"].values():
            options = {**(entry.get("options") or {}), **options}
    if not options:
        return "The role has no variables."
    rows = []
    for name, option in options.items():
        choices = f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}." if "choices" in option else ""
        rows.append([f"`{name}`", default(option["default"]), f"{option['description']}{choices}"])
    return table(["variable", "default", "meaning"], rows)


def profiles() -> str:
    """Return the table of the device profiles."""
    known = read(ROOT / "roles/testbed/defaults/main.yml")["testbed_profiles"]
    keys = ("rate_up", "rate_down", "delay", "jitter", "loss")
    rows = [
        [
            f"`{name}`",
            str(each["cpus"]),
            str(each["memory"]),
            str(each.get("speed", "")),
            *(each.get("network", {}).get(key, "") for key in keys),
            each["source"],
        ]
        for name, each in known.items()
    ]
    return table(["profile", "cpus", "memory", "speed", *(key.replace("_", " ") for key in keys), "source"], rows)


def pages() -> Iterator[tuple[Path, str, str]]:
    """Yield every page with the name of its block and what belongs there."""
    for role in sorted((ROOT / "roles").iterdir()):
        yield role / "README.md", "variables", variables(role)
    yield ROOT / "docs/reference-profiles.md", "profiles", profiles()


def with_block(path: Path, name: str, content: str) -> str:
    """Return a page with the content between its markers. Raises SystemExit where a marker is missing."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"error: {path} has no lines {begin.strip()} and {end}\nhint: put them where the table belongs")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}{content}\n{end}{rest.partition(end)[2]}"


def main(check: bool) -> int:
    """Write the pages, or compare them; return the exit code."""
    stale = [
        (path, new) for path, name, content in pages() if (new := with_block(path, name, content)) != path.read_text()
    ]
    for path, new in stale:
        if not check:
            path.write_text(new, encoding="utf-8")
        print(f"{'differs from its role' if check else 'written'}: {path.relative_to(ROOT)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
