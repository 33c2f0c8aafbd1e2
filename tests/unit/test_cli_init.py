"""fltestbed init: what it writes is a testbed as it stands."""

import importlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from fltestbed import inventory, new_inventory
from fltestbed.errors import InventoryError

PROGRAM = [sys.executable, "-c", "from fltestbed.cli import main; main()", "init"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_copy_is_a_testbed_and_says_what_comes_next(tmp_path: Path) -> None:
    done = init("attic", "--from", "raspberry-pi")
    assert done.returncode == 0, done.stderr
    for line in ("hosts 4, clients 3", "fltestbed check -i attic", "fltestbed up -i attic"):
        assert line in done.stdout
    assert "lab up" not in done.stdout
    assert "-i attic" in (tmp_path / "inventories/attic/hosts.yml").read_text()
    again = init("attic", "--from", "raspberry-pi")
    assert again.returncode == 3
    assert "inventories/attic is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["My Lab", "--from", "virtual"], 3, "a testbed cannot be called 'My Lab'"),
        (["../lab", "--from", "virtual"], 3, "a testbed cannot be called '../lab'"),
        (["lab"], 2, "give one of raspberry-pi, single-host, virtual, published/f"),
        (["lab", "--from", "moon"], 2, "'moon'"),
        (["lab", "--from", "raspberry-pi", "--scale", "0.5"], 2, "only virtual devices can be scaled"),
        (["lab", "--from", "virtual", "--population", "p.yml"], 2, "a population is of virtual devices of its own"),
        (["lab", "--population", "p.yml"], 3, "p.yml: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    done = init(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert not (tmp_path / "inventories").exists()


def test_virtual_labs_have_subnets_of_their_own_and_their_own_keys(tmp_path: Path) -> None:
    subnets = set()
    for name in ("one", "two"):
        testbed = inventory.load(new_inventory.copy(name, "virtual"))
        addresses = {str(host.connection["ansible_host"]).rpartition(".")[0] for host in testbed.hosts}
        subnets |= addresses
        assert len(addresses) == 1
        for host in testbed.hosts:
            key = tmp_path / ".fltestbed" / name / "ssh" / "id_ed25519"
            assert host.connection["ansible_ssh_private_key_file"] == str(key)
            assert str(key.with_name("known_hosts")) in host.connection["ansible_ssh_common_args"]
    assert len(subnets) == 2
    assert "172.28.1" not in subnets


@pytest.mark.parametrize(
    ("template", "scale", "limits"),
    [
        (
            "published/flower-docker-heterogeneity",
            0.25,
            [(1, 768, 32, 0.001), (0.25, 1536, 256, 0.05), (0.75, 1024, 64, 0.02), (0.625, 1280, 128, 0.09)],
        ),
        ("published/fltk", 0.5, [(1, 1024), (1, 1024), (0.5, 512), (0.5, 512), (0.25, 512), (0.25, 512)]),
        ("virtual", 0.1, [(0.1, 512, 16, 0.02), (0.1, 512, 32, 0.02), (0.12, 512, 64, 0.03)]),
    ],
)
def test_a_virtual_lab_can_be_scaled(
    template: str, scale: float, limits: list[tuple[float, ...]], tmp_path: Path
) -> None:
    done = init("small", "--from", template, "--scale", str(scale))
    assert done.returncode == 0, done.stderr
    testbed = inventory.load(tmp_path / "inventories/small")
    found = [
        (client["cpus"], client["memory"] // 2**20, *list(client["settings"].values())[:2])
        for client in testbed.clients
    ]
    assert found == limits
    assert f"the clients have {sum(each[0] for each in limits):g} cpus" in done.stdout
    assert "fltestbed lab up -i small" in done.stdout
    text = (tmp_path / "inventories/small/hosts.yml").read_text()
    assert text.startswith("#") and f"{scale:g} times those of {template}" in text


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        new_inventory.copy("lab", "single-host")
    assert not list((tmp_path / "inventories").iterdir())


@pytest.mark.parametrize("error", [InventoryError("no"), KeyboardInterrupt()])
def test_a_folder_that_is_no_testbed_is_not_left(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        assert (folder / "hosts.yml").exists()
        raise error

    command = importlib.import_module("fltestbed.cli.init")
    monkeypatch.setattr(command, "load", fail)
    with pytest.raises(type(error)):
        command.init("lab", "single-host")
    assert not list((tmp_path / "inventories").iterdir())


def test_questions_are_asked_on_a_terminal(tmp_path: Path) -> None:
    """Wrong answers are asked again; `null` is a name like any other."""
    answers = ["192.0.2.10:22", "laptop.local", "2001:db8::10", "localhost", "192.0.2.10", ""]
    answers += ["pi-1", "monitoring=192.0.2.21", "pi-1=192.0.2.21, null=192.0.2.22", "rpi9", "rpi5", ""]
    terminal, theirs = pty.openpty()
    with subprocess.Popen([*PROGRAM, "lab"], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(terminal, "".join(f"{answer}\n" for answer in answers).encode())
        said = b""
        while True:
            try:
                said += os.read(terminal, 65536)
            except OSError:  # what a terminal that nobody holds any more says
                break
    os.close(terminal)
    text = said.decode()
    assert process.returncode == 0, text
    for line in (
        "'192.0.2.10:22' is not an address",
        "laptop.local is a name of mDNS",
        "2001:db8::10 is IPv6",
        "localhost is every machine's own address",
        "'pi-1' is not a device",
        "'monitoring=192.0.2.21' has the name of a group",
        "there is no profile 'rpi9'",
    ):
        assert line in text
    testbed = inventory.load(tmp_path / "inventories" / "lab")
    assert testbed.server.connection == {"ansible_host": "192.0.2.10", "ansible_user": "pi"}
    assert [(host.name, host.connection["ansible_host"]) for host in testbed.devices] == [
        ("pi-1", "192.0.2.21"),
        ("null", "192.0.2.22"),
    ]
    assert [client["memory"] for client in testbed.clients] == [6912 * 1024**2] * 2


@pytest.mark.parametrize(
    "text",
    [
        *("pi-1", "Pi=192.0.2.1", "pi-1=192.0.2.300", "a=192.0.2.1 a=192.0.2.2", "b=192.0.2.10", ""),
        *(f"{group}=192.0.2.1" for group in ("testbed", "superlink", "supernodes", "monitoring", "all", "ungrouped")),
    ],
)
def test_devices_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(InventoryError):
        new_inventory.parse_devices(text, {"server": "192.0.2.10"})
