"""How check prints what it found."""

import json

import pytest

from fltestbed.cli._options import Format
from fltestbed.cli.check import _show
from fltestbed.findings import Finding

FOUND = [
    Finding("warning", "", "inventories/lab/hosts.yml:3", "pi-1: a name is odd", "choose another"),
    Finding("error", "pi-1", "control groups", "the memory controller is off " * 10, "append it to cmdline.txt"),
    Finding("error", "pi-1", "disk", "1 MB is free", "free some"),
]
HOSTS = [{"host": "pi-1", "fine": "13 of 15"}]
SAFE = {"pi-1": ["control groups"]}


def test_a_finding_says_where_what_and_how_to_mend_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    _show(FOUND, HOSTS, Format.table, SAFE)
    said = capsys.readouterr().out
    assert "warning  inventories/lab/hosts.yml:3\n    pi-1: a name is odd\n    fix: choose another\n" in said
    assert "error  pi-1  control groups\n" in said
    assert "    fix: append it to cmdline.txt (fltestbed check --fix does it)\n" in said
    assert "    fix: free some\n" in said
    assert max(map(len, said.splitlines())) <= 100
    assert said.endswith("\nHOSTS\nhost  fine\npi-1  13 of 15\n")


def test_the_same_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _show(FOUND, HOSTS, Format.json, SAFE)
    said = json.loads(capsys.readouterr().out)
    assert [row["safe"] for row in said["findings"]] == [False, True, False]
    assert set(said["findings"][0]) == {"severity", "host", "where", "what", "fix", "safe"}
    assert said["hosts"] == HOSTS
