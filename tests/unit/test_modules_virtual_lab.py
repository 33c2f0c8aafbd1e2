"""testbed_virtual_lab: what it decides without an engine. The rest runs for real in Molecule and end to end."""

from pathlib import Path
from typing import Any

import ansible_modules
import pytest
from ansible.module_utils import testbed_docker

lab = ansible_modules.load("modules", "testbed_virtual_lab")

ROUTES = [
    {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
    {"dst": "192.0.2.0/24", "dev": "eth0"},
    {"dst": "172.28.64.0/18", "dev": "tun0"},
    {"dst": "172.28.200.7", "dev": "tun1"},
]


@pytest.mark.parametrize(
    ("subnet", "device"),
    [
        ("172.28.1.0/24", None),
        ("192.0.2.0/24", "eth0"),
        ("192.0.2.128/25", "eth0"),  # within a route
        ("172.28.0.0/16", "tun0"),  # around a route
        ("172.28.200.0/24", "tun1"),  # around a route to one host
    ],
)
def test_a_subnet_that_overlaps_with_a_route_is_found(subnet: str, device: str | None) -> None:
    found = lab.overlapping_route(subnet, ROUTES)
    assert (found and found["dev"]) == device


def arguments(**changes: Any) -> list[str]:
    device = {"name": "pi-4", "address": "172.28.1.22", "cpus": 0.8, "memory": "2g"}
    given = {
        "device": device,
        "container": "virtual-pi-4",
        "network": "fltestbed-virtual",
        "image": "fltestbed/device:1",
        "authorized_key": "ssh-ed25519 AAAA",
    }
    given |= {key: device | value if key == "device" else value for key, value in changes.items()}
    made: list[str] = lab.run_arguments(**given)
    return made


@pytest.mark.parametrize(
    "change", [{"device": {"address": "172.28.1.23"}}, {"image": "fltestbed/device:2"}, {"authorized_key": "other"}]
)
def test_a_device_is_made_anew_when_what_it_is_changes(change: dict[str, Any]) -> None:
    assert lab.fingerprint(arguments(**change)) != lab.fingerprint(arguments())


def test_a_device_is_not_made_anew_for_other_limits() -> None:
    assert lab.fingerprint(arguments(device={"cpus": 0.4, "memory": "1g"})) == lab.fingerprint(arguments())


def test_a_device_has_its_address_name_and_volume_and_is_not_privileged() -> None:
    made = arguments()
    assert {"--ip=172.28.1.22", "--hostname=pi-4", "--volume=virtual-pi-4-docker:/var/lib/docker"} <= set(made)
    assert made[-1] == "fltestbed/device:1"
    assert not {"--privileged", "--cap-add=ALL"} & set(made)


def test_without_an_engine_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(testbed_docker, "SOCKET", str(tmp_path / "none.sock"))
    answer = ansible_modules.run(lab, name="lab", state="gathered", devices=[])
    assert answer["failed"]
    assert "Start it, or run the lab-up playbook" in answer["msg"]
