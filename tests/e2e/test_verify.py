"""Limits proven on virtual devices: as they are, tampered with, and what the clients can do below them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .lab import DEVICES, Lab

MEASURED = ("pi-3", "laptop")


def asked(lab: Lab) -> dict[str, tuple[float, int]]:
    """Return what each client is to have: cores, bytes of memory."""
    return {row["client"]: (row["cpus_asked"], row["memory_asked"]) for row in lab.status()["clients"]}


def verified(lab: Lab, *arguments: str, code: int | None = 0) -> dict[tuple[str, str], dict[str, Any]]:
    """Return verify's rows by client and figure."""
    rows = json.loads(lab.run("verify", "--format", "json", *arguments, code=code))["verified"]
    return {(row["client"], row["figure"]): row for row in rows}


def test_every_client_of_an_untouched_testbed_gets_what_is_asked_for(lab: Lab) -> None:
    rows = verified(lab, "--limit", ",".join(MEASURED))
    assert {client for client, _ in rows} == set(MEASURED)
    wanted = asked(lab)
    for name in MEASURED:
        cpus, memory = wanted[name]
        cpu = rows[name, "cpus"]
        assert cpu["asked"] == cpu["kernel"] == cpus
        assert cpu["verdict"] in ("ok", "busy"), cpu  # a machine that others use gives less, and verify says so
        assert cpu["measured"] <= cpus * 1.03
        assert rows[name, "memory"]["verdict"] == "ok", rows[name, "memory"]
        assert abs(rows[name, "memory"]["measured"] * 2**20 / memory - 1) <= 0.03
        assert 0.1 < rows[name, "core speed"]["measured"] <= 1
        for way in ("down", "up"):
            assert rows[name, way]["verdict"] == "no limit" and rows[name, way]["measured"] > 1
        assert 0 < rows[name, "round trip"]["measured"] < 1000
    kept = json.loads((lab.folder / ".fltestbed" / lab.name / "verify.json").read_text())
    assert {(row["client"], row["figure"]) for row in kept} == set(rows)
    states = {row["service"]: row["state"] for row in lab.status()["containers"]}
    assert set(states.values()) == {"running"}


@pytest.fixture
def tampered(lab: Lab) -> Iterator[str]:
    """A device of which all limits were changed behind the testbed's back."""
    container = f"fltestbed-{lab.name}-client-pi-3-1"
    lab.run("shape", "pi-3", "--rate", "5mbit")
    lab.on("pi-3", "docker", "update", "--cpus", "0.2", "--memory", "512m", "--memory-swap", "512m", container)
    yield "pi-3"
    lab.on("pi-3", "docker", "update", "--cpus", "0.5", "--memory", "640m", "--memory-swap", "640m", container)
    lab.run("restore", "pi-3")


def test_limits_that_were_tampered_with_are_found_and_measured(lab: Lab, tampered: str) -> None:
    rows = verified(lab, "--limit", tampered, code=5)
    for figure, kernel, least, most in (
        ("cpus", 0.2, 0.0, 0.21),
        ("memory", 512, 490, 528),
        ("down", 5, 0.5, 5.2),
        ("up", 5, 0.5, 5.2),
    ):
        row = rows[tampered, figure]
        assert row["verdict"] == "off", row
        assert row["kernel"] == pytest.approx(kernel, rel=0.001)
        assert least < row["measured"] < most, row
        assert "is asked for" in row["reason"]


def test_nothing_is_measured_while_a_run_is_on(lab: Lab) -> None:
    folder = f"/opt/fltestbed/{lab.name}/runs/20990101-000000-on"
    lab.on("server", "mkdir", folder)
    lab.on("server", "sh", "-c", f"""echo '{{"status": "running"}}' > {folder}/run.json""")
    try:
        with lab.start("verify") as verify:
            said = verify.communicate(timeout=300)[0]
        assert verify.returncode == 5, said
        assert "The run 20990101-000000-on is on" in said
        lab.run("calibrate", code=5)
    finally:
        lab.on("server", "rm", "-r", folder)


def test_calibration_tells_slow_devices_from_fast_ones(lab: Lab) -> None:
    rows = json.loads(lab.run("calibrate", "fashion-mnist-cnn", "--format", "json"))["calibration"]
    found = json.loads((lab.folder / ".fltestbed" / lab.name / "calibration.json").read_text())
    assert set(found) == {row["client"] for row in rows} == set(DEVICES)
    wanted = asked(lab)
    for name, size in (("pi-3", 16), ("pi-4", 32), ("laptop", 64)):
        each = found[name]
        assert (each["cpus"], each["memory"]) == wanted[name]
        assert (each["model"], each["batch_size"]) == ("cnn", size)
        assert 150 * 2**20 < each["peak_memory_bytes"] < each["memory"]
        assert {8, size} <= {row["batch_size"] for row in each["batch_sizes"]}
        left = lab.on(name, "docker", "exec", f"fltestbed-{lab.name}-client-{name}-1", "ls", "/tmp")  # noqa: S108
        assert "calibrate-" not in left
    speeds = {name: max(row["samples_per_second"] for row in each["batch_sizes"]) for name, each in found.items()}
    assert 0 < speeds["pi-3"] < speeds["laptop"]
