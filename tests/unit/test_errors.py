"""Errors as text."""

from fltestbed.cli._render import explain
from fltestbed.errors import FltestbedError, HostError, HostsFailed


def test_error_says_what_is_wrong_and_what_to_do() -> None:
    assert explain(FltestbedError("the cup is empty", "fill it")) == "error: the cup is empty\nhint: fill it"


def test_error_without_hint_has_no_empty_line() -> None:
    assert explain(FltestbedError("the cup is empty")) == "error: the cup is empty"


def test_hosts_are_listed_with_the_task_that_stopped_them() -> None:
    error = HostsFailed(
        "2 of 3 hosts failed",
        {"pi-2": HostError("Start the engine", "no engine\nlook there"), "pi-1": HostError("", "gone")},
        "mend it",
    )
    assert explain(error).splitlines() == [
        "error: 2 of 3 hosts failed",
        "  pi-1",
        "    gone",
        "  pi-2: Start the engine",
        "    no engine",
        "    look there",
        "hint: mend it",
    ]


def test_plain_ansible_shows_the_hint_too() -> None:
    assert str(FltestbedError("the cup is empty", "fill it")) == "the cup is empty\nfill it"
