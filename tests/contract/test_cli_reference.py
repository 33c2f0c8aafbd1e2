"""The pages about the command line say what the program does."""

import importlib.util
import re
from pathlib import Path

from fltestbed import errors

REPOSITORY = Path(__file__).parents[2]


def test_page_of_commands_equals_help() -> None:
    spec = importlib.util.spec_from_file_location("reference_cli", REPOSITORY / "scripts" / "reference_cli.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/reference_cli.py"


def test_page_of_exit_codes_lists_every_error() -> None:
    page = (REPOSITORY / "docs" / "reference-exit-codes.md").read_text(encoding="utf-8")
    listed = {(int(code), name) for code, name in re.findall(r"^\| (\d+) \| ([a-z-]+) \|", page, re.MULTILINE)}
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    raised = [
        thing
        for thing in classes
        if issubclass(thing, errors.FltestbedError) and thing not in (errors.FltestbedError, errors.HostsError)
    ]
    assert listed == {(error.exit_code, error.code) for error in raised}
    assert len(listed) == len(raised), "two errors have the same name"
