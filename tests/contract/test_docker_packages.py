"""Which packages the role docker asks for, by the system that the host runs and where its packages come from."""

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).parents[2] / "roles/docker"
SYSTEMS = {
    "Debian 12": ("debian", "12", "bookworm"),
    "Debian 13": ("debian", "13", "trixie"),
    "Raspberry Pi OS 13": ("debian", "13", "trixie"),  # the 64-bit one, which is Debian by /etc/os-release
    "Ubuntu 22.04": ("ubuntu", "22.04", "jammy"),
    "Ubuntu 24.04": ("ubuntu", "24.04", "noble"),
}
FROM_DOCKER = ["docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin"]


def render(system: str, template: Any, *, arch: str = "aarch64", **variables: Any) -> Any:
    """Return a variable of the role (or a value of an inventory) on a host without an engine and Compose."""
    name, version, codename = SYSTEMS[system]
    probe = {
        "arch": arch,
        "os": {"id": name, "version": version, "codename": codename, "name": system},
        "docker": {"version": "", "compose": "", "running": False, "on_boot": False, "daemon_json": {}},
        "service_mgr": "systemd",
    }
    loader = DataLoader()
    known: dict[str, Any] = {}
    for file in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(ROLE / file), trusted_as_template=True)
    facts = {
        "ansible_facts": {"testbed_probe": probe},
        "ansible_check_mode": False,
        "__docker_installed": {"stdout": ""},
    }
    return Templar(loader=loader, variables=known | facts | variables).template(
        known[template] if isinstance(template, str) else template
    )


@pytest.mark.parametrize(
    ("system", "packages"),
    [
        ("Debian 12", ["docker.io", "iptables"]),
        ("Debian 13", ["docker.io", "iptables", "docker-cli", "docker-compose", "docker-cli"]),
        ("Raspberry Pi OS 13", ["docker.io", "iptables", "docker-cli", "docker-compose", "docker-cli"]),
        ("Ubuntu 22.04", ["docker.io", "iptables", "docker-compose-v2"]),
        ("Ubuntu 24.04", ["docker.io", "iptables", "docker-compose-v2"]),
    ],
)
def test_packages_of_the_distribution(system: str, packages: list[str]) -> None:
    assert render(system, "_docker_packages") == packages
    assert render(system, "_docker_packages", docker_compose=False) == packages[: 3 if "docker-cli" in packages else 2]


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_packages_of_docker_are_called_the_same_everywhere(system: str, arch: str) -> None:
    repository = {"name": "docker", "uris": "http://127.0.0.1/"}
    assert render(system, "_docker_packages", arch=arch, docker_apt_repository=repository) == FROM_DOCKER
    # An engine of Docker's that is there gets Docker's Compose.
    there = {"stdout": "docker-ce installed\n"}
    lacks = {"_docker_engine_missing": False, "__docker_installed": there}
    assert render(system, "_docker_packages", arch=arch, **lacks) == ["docker-compose-plugin"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_of_the_table_is_supported(system: str) -> None:
    name, version, _codename = SYSTEMS[system]
    assert version in render(system, "_docker_supported")[name]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_readmes_repository_fits_the_system(system: str, tmp_path: Path) -> None:
    text = (ROLE / "README.md").read_text(encoding="utf-8")
    example = tmp_path / "example.yml"
    example.write_text(text.split("```yaml\n")[1].split("```")[0])
    written = DataLoader().load_from_file(str(example), trusted_as_template=True)["docker_apt_repository"]
    name, _version, codename = SYSTEMS[system]
    assert render(system, written) == {
        "name": "docker",
        "uris": f"URL/{name}",
        "suites": codename,
        "components": "stable",
        "signed_by": f"URL/{name}/gpg",
    }
