"""Writes the README's tables of a run: `python scripts/readme_demo.py runs/<run>`."""

import sys
from pathlib import Path

from fltestbed.cli._render import table
from fltestbed.cli.run import summary

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- demo: begin -->\n", "<!-- demo: end -->"


def block(run: Path) -> str:
    """Return what `fltestbed run` printed at the end of a run."""
    parts = summary(run)
    if not parts["rounds"]:
        sys.exit(f"error: {run} holds no finished round\nhint: give a folder that fltestbed run made below runs/")
    return "```\n" + "\n\n".join(f"{title.upper()}\n{table(rows)}" for title, rows in parts.items()) + "\n```\n"


if __name__ == "__main__":
    head, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{head}{BEGIN}{block(Path(sys.argv[1]))}{END}{rest.partition(END)[2]}", encoding="utf-8")
