"""What check makes of the hosts' answers."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_modules import load

from fltestbed.checks import BETWEEN_HOSTS, host_findings, lost_host, safe_fixes
from fltestbed.errors import HostError

ROOT = Path(__file__).parents[2]


def answer(
    clock: tuple[float, float] = (-0.1, 0.1), rows: tuple[dict[str, Any], ...] = (), **facts: Any
) -> dict[str, Any]:
    known = {"ufw": False, "machine_id": facts.get("hostname"), "boot_id": facts.get("hostname"), "is_container": False}
    return {
        "findings": list(rows),
        "checked": [],
        "facts": known | facts,
        "clock": {"least": clock[0], "most": clock[1]},
    }


def row(where: str, **more: Any) -> dict[str, Any]:
    return {"severity": "error", "where": where, "what": "w", "fix": "f", "safe": False, "refused": False} | more


def clocks(server: tuple[float, float], device: tuple[float, float]) -> list[tuple[str, str, str]]:
    answers = {"server": answer(server, hostname="a"), "pi-1": answer(device, hostname="b")}
    return [(found.severity, found.host, found.what) for found in host_findings(answers, "server")]


def test_hosts_in_order_have_no_finding() -> None:
    assert clocks((-0.1, 0.1), (-0.1, 0.1)) == []


def test_a_clock_is_compared_with_the_servers() -> None:
    """Flower compares the two; the controller's own clock may be the one that is wrong."""
    ((severity, host, what),) = clocks((-0.1, 0.1), (19.9, 20.1))
    assert (severity, host) == ("error", "pi-1") and "20.0 s ahead of the server's" in what
    found = clocks((59.9, 60.1), (59.9, 60.1))
    assert [(severity, host) for severity, host, _ in found] == [("warning", "server")]
    ((severity, host, what),) = clocks((-0.1, 0.1), (-400.1, -399.9))
    assert (severity, host) == ("error", "pi-1") and "7 min behind" in what
    ((severity, _, _),) = clocks((-0.1, 0.1), (-30.1, -29.9))
    assert severity == "warning"


def test_a_slow_call_is_no_false_alarm() -> None:
    assert clocks((-9.0, 0.1), (-0.1, 9.0)) == []
    assert clocks((-0.1, 0.1), (-8.0, 8.0)) == []


def test_a_clock_without_an_answer_of_the_server() -> None:
    """As where a limit leaves the server out, or where nothing is to be done on it."""
    answers = {"pi-1": answer((-10.1, -9.9), hostname="b")}
    ((severity, said),) = [(found.severity, found.what) for found in host_findings(answers, "server")]
    assert severity == "warning"
    assert "behind the controller's" in said
    assert host_findings(answers, "server", {"least": -11.0, "most": -9.5}) == []
    (found,) = host_findings({"pi-1": answer(hostname="b")}, "server", {"least": -11.0, "most": -9.5})
    assert (found.host, found.severity) == ("pi-1", "error")
    assert "ahead of the server's" in found.what


def test_a_clock_before_the_certificates() -> None:
    ((severity, _, what),) = clocks((-0.1, 0.1), (-7200.1, -7200.0))
    assert severity == "error" and "certificates" in what


def test_one_machine_under_two_names() -> None:
    one = {"hostname": "pi", "machine_id": "m", "boot_id": "b"}
    (found,) = host_findings({"pi-1": answer(**one), "pi-2": answer(**one)}, "server")
    assert (found.severity, found.host, found.where) == ("error", "pi-2", "identity")
    assert "pi-1 are the same machine" in found.what


def test_copies_of_one_card() -> None:
    answers = {name: answer(hostname="raspberrypi", machine_id="m", boot_id=name) for name in ("pi-1", "pi-2", "pi-3")}
    found = host_findings(answers, "server")
    assert [(each.severity, each.host) for each in found] == [("warning", "pi-2")] * 2 + [("warning", "pi-3")] * 2
    assert "machine-id" in found[0].what and "raspberrypi" in found[1].what


def builds(free: dict[str, int], silent: dict[str, str] | None = None, builder: str = "server") -> list[Any]:
    """Return host and words of each finding, where images are to be built for the devices' architecture."""
    answers = {
        host: answer(
            hostname=host,
            arch="x86_64" if host == "server" else "aarch64",
            disk_free_mb=megabytes,
            build=None if host == "server" else {"builder": builder, "mb": 4000, "silent": silent or {}},
        )
        for host, megabytes in free.items()
    }
    return [(found.host, found.what) for found in host_findings(answers, "server") if found.where == "build"]


def test_the_host_that_will_build_needs_disk_and_a_mirror() -> None:
    assert builds({"server": 100, "pi-1": 5000, "pi-2": 100}) == []
    ((host, said),) = builds({"server": 9000, "pi-1": 100, "pi-2": 9000})
    assert host == "pi-1" and "100 MB are free" in said and "takes 4000 MB" in said
    ((host, _said),) = builds({"pi-1": 9000, "pi-2": 100}, builder="pi-2")
    assert host == "pi-2"
    ((host, said),) = builds({"server": 9000, "pi-1": 9000, "pi-2": 9000}, {"http://mirror/x": "no route"})
    assert host == "pi-1" and "http://mirror/x cannot be reached: no route" in said


def test_of_a_builder_that_is_not_asked_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert builds({"pi-1": 100}) == []
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert builds({"pi-1": 100}, builder="localhost") == []
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert [host for host, _said in builds({"pi-1": 100}, builder="localhost")] == ["pi-1"]


def test_a_refused_port_is_not_blamed_on_a_device_when_nobody_listened() -> None:
    refused = {"pi-1": answer(rows=(row("server", refused=True), row("disk")), hostname="b")}
    assert [found.where for found in host_findings(refused, "server")] == ["disk"]
    with_server = {"server": answer(hostname="a")} | refused
    assert [found.where for found in host_findings(with_server, "server")] == ["server", "disk"]


def test_a_trial_that_ufw_may_have_held_up_stops_nothing() -> None:
    server = answer(hostname="a", ufw=True)
    device = answer(rows=(row("server"), row("disk")), hostname="b")
    held = {"server": server | {"listener": 7}, "pi-1": device}
    assert [(found.where, found.severity) for found in host_findings(held, "server")] == [
        ("disk", "error"),
        ("server", "warning"),
    ]
    deployed = {"server": server | {"listener": 0}, "pi-1": device}
    assert {found.severity for found in host_findings(deployed, "server")} == {"error"}


def test_what_is_safe_to_mend() -> None:
    answers = {
        "server": answer(hostname="a"),
        "pi-1": answer((30.0, 30.1), (row("control groups", safe=True), row("disk")), hostname="b"),
        "pi-2": answer((30.0, 30.1), hostname="c", is_container=True),
    }
    assert safe_fixes(answers, host_findings(answers, "server")) == {"pi-1": ["control groups", "clock"]}


@pytest.mark.parametrize(
    ("message", "where", "fragment"),
    [
        ("ssh: Could not resolve hostname pi.lan: Name or service not known", "SSH", "resolved"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection refused", "SSH", "refuses"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection timed out", "SSH", "does not answer"),
        ("ssh: connect to host 192.0.2.1 port 22: No route to host", "SSH", "does not answer"),
        ("Host key verification failed.", "SSH host key", "not known here"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "SSH host key",
            "another",
        ),
        ("pi@192.0.2.1: Permission denied (publickey).", "SSH permission", "lets nobody in"),
        ("Timeout (12s) waiting for privilege escalation prompt:", "sudo", "too busy"),
        ("Missing sudo password", "sudo", "become root"),
        ("sudo: a password is required", "sudo", "become root"),
        ("The module interpreter '/usr/bin/python3' was not found.", "Python", "no Python"),
        ("/bin/sh: 1: /usr/bin/python3: not found", "Python", "no Python"),
        ("something else", "SSH", "something else"),
    ],
)
def test_why_a_host_could_not_be_asked(message: str, where: str, fragment: str) -> None:
    found = lost_host("pi-1", "192.0.2.1", HostError("Check the host", f"Failed to connect: {message}"))
    assert (found.severity, found.where) == ("error", where)
    assert fragment in found.what and found.fix and "{" not in found.what + found.fix


def test_ssh_says_what_is_expected_of_it() -> None:
    """The patterns are held against the ssh of this machine, as far as that goes without a server."""
    for target, fragment in (("no-such-host.invalid", "resolved"), ("127.0.0.1", "refuses")):
        command = ["ssh", "-p", "1", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", target, "true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert fragment in lost_host("pi-1", target, HostError("", done.stderr)).what, done.stderr


def test_every_check_has_a_page() -> None:
    page = (ROOT / "docs/reference-checks.md").read_text(encoding="utf-8")
    module = load("modules", "testbed_check")
    for name in (*module.CHECKS, *BETWEEN_HOSTS, "SSH", "SSH host key", "SSH permission", "sudo"):
        assert f"| {name} |" in page, name
    for name in module.FIXES:
        assert f"| {name} |" in page.partition("## What --fix mends")[2], name


def test_architectures_are_those_of_the_images() -> None:
    def read(role: str) -> dict[str, Any]:
        return dict(yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")))

    assert sorted(read("check")["check_architectures"]) == sorted(read("images")["images_torch"])
