"""What an inventory may say, and what becomes of it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fltestbed import inventory, inventory_stamp
from fltestbed.errors import ExperimentError, InventoryError, ResultsError
from fltestbed.inventory import load, resolve_clients
from fltestbed.new_inventory import templates
from fltestbed.paths import ansible_environment, find_experiment, find_inventory, find_run

PROFILES = {"rpi4": {"cpus": 4, "memory": "3840m", "source": "brief"}, "rpi3": {"cpus": 4, "memory": "768m"}}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State lands below the working directory."""
    monkeypatch.chdir(tmp_path)


def write(folder: Path, devices: dict[str, Any], server: str = "server") -> Path:
    tree = {"testbed": {"children": {"superlink": {"hosts": {server: None}}, "supernodes": {"hosts": devices}}}}
    folder.mkdir()
    (folder / "hosts.yml").write_text(yaml.safe_dump(tree))
    return folder


def resolve(**hostvars: Any) -> list[dict[str, Any]]:
    return resolve_clients("pi-1", hostvars, PROFILES)


def test_a_device_without_a_word_is_one_client_without_limits() -> None:
    alone = {"device": "pi-1", "client": "pi-1", "cpus": None, "memory": None, "settings": {}, "data": None}
    assert resolve() == [alone]


def test_the_nearest_word_counts() -> None:
    [client] = resolve(
        testbed_client_defaults={"cpus": 1, "memory": "1g", "batch_size": 8, "local_epochs": 3, "data_fraction": 0.5},
        testbed_profile="rpi4",
        testbed_client={"memory": "2g", "batch_size": 16},
        testbed_clients=[{"batch_size": 32}],
    )
    assert (client["cpus"], client["memory"]) == (4.0, 2 * 1024**3)
    assert client["settings"] == {"batch_size": 32, "local_epochs": 3, "data_fraction": 0.5}


def test_several_clients_are_numbered_and_have_their_own_limits() -> None:
    clients = resolve(testbed_clients=[{"cpus": 2, "memory": "2g"}, {"cpus": 0.5, "memory": "512M"}])
    assert [(client["client"], client["cpus"], client["memory"]) for client in clients] == [
        ("pi-1-1", 2.0, 2147483648),
        ("pi-1-2", 0.5, 536870912),
    ]


def test_an_own_profile_goes_before_one_of_the_same_name() -> None:
    own = {"rpi4": {"cpus": 2, "memory": "1g"}}
    [client] = resolve_clients("pi-1", {"testbed_profile": "rpi4"}, PROFILES, own)
    assert (client["cpus"], client["memory"]) == (2.0, 1024**3)


@pytest.mark.parametrize(
    ("memory", "in_bytes"), [("8192k", 8 * 1024**2), ("1.5g", 1610612736), ("6m", 6 * 1024**2), (10485760, 10485760)]
)
def test_memory_units_are_dockers(memory: str | int, in_bytes: int) -> None:
    assert resolve(testbed_client={"memory": memory})[0]["memory"] == in_bytes


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ({"memory": "2gg"}, "memory cannot be '2gg'", "512m or 2g"),
        ({"memory": 2}, "memory cannot be 2", "at least 6m"),
        ({"memory": "-1g"}, "memory cannot be '-1g'", "512m or 2g"),
        ({"cpus": "fast"}, "cpus cannot be 'fast'", "0.5 or 4"),
        ({"cpus": 0}, "cpus cannot be 0", "0.5 or 4"),
        ({"cpus": True}, "cpus cannot be True", "0.5 or 4"),
        ({"cpus": "nan"}, "cpus cannot be 'nan'", "0.5 or 4"),
        ({"cpus": 10**400}, "cpus cannot be 1000", "0.5 or 4"),
        ({"memory": "9" * 310}, "memory cannot be '999", "512m or 2g"),
        ({"memory": 10**310}, "memory cannot be 1000", "512m or 2g"),
        ({"batch_size": "1e400"}, "batch_size cannot be '1e400'", "whole number"),
        ({"batch_size": float("inf")}, "batch_size cannot be inf", "whole number"),
        ({"local_epochs": float("nan")}, "local_epochs cannot be nan", "whole number"),
        ({"learning_rate": "1e400"}, "learning_rate cannot be '1e400'", "above 0"),
        ({"batch_size": 0.5}, "batch_size cannot be 0.5", "whole number"),
        ({"learning_rate": 0}, "learning_rate cannot be 0", "above 0"),
        ({"data_fraction": 1.5}, "data_fraction cannot be 1.5", "at most 1"),
        ({"width": 0}, "width cannot be 0", "above 0, at most 1"),
        ({"memroy": "1g"}, "unknown key 'memroy'", "did you mean memory?"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(entry: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InventoryError) as caught:
        resolve(testbed_clients=[entry])
    assert "pi-1: " in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("hostvars", "message", "hint"),
    [
        ({"testbed_profile": "rpi44"}, "no profile 'rpi44'", "did you mean rpi4"),
        ({"testbed_clients": {"cpus": 1}}, "must be a list", "one entry a client"),
        ({"testbed_clients": ["fast"]}, "must be a mapping", "{cpus: 1"),
        ({"testbed_client": [1]}, "must be a mapping", "{cpus: 1"),
        ({"testbed_client_defaults": {"cpu": 1}}, "unknown key 'cpu'", "did you mean cpus?"),
        ({"testbed_profile": "rpi4", "testbed_clients": [{}, {}]}, "8 cpus together", "a cpus limit"),
        (
            {"testbed_profile": "rpi4", "testbed_clients": [{"cpus": 1}, {"cpus": 1}]},
            "7680m together",
            "a memory limit",
        ),
    ],
)
def test_variables_of_a_device_are_checked(hostvars: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InventoryError) as caught:
        resolve(**hostvars)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_folder_becomes_a_testbed(tmp_path: Path) -> None:
    folder = write(tmp_path / "lab", {"pi-1": {"testbed_profile": "rpi3"}, "pi-2": {"testbed_clients": [{}, {}]}})
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "supernodes.yml").write_text(
        'ansible_ssh_private_key_file: "{{ testbed_state_dir }}/key"\nansible_become_password: secret\n'
    )
    testbed = load(folder)
    assert (testbed.name, testbed.server.name) == ("lab", "server")
    assert [host.name for host in testbed.hosts] == ["server", "pi-1", "pi-2"]
    assert [client["client"] for client in testbed.clients] == ["pi-1", "pi-2-1", "pi-2-2"]
    assert testbed.devices[0].connection == {"ansible_ssh_private_key_file": f"{Path.cwd()}/.fltestbed/lab/key"}


def test_encrypted_variables_are_read_with_the_vaults_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "lab", {"pi-1": None})
    (folder / "group_vars").mkdir()
    file, password = folder / "group_vars" / "supernodes.yml", tmp_path / "password"
    password.write_text("open sesame\n")
    file.write_text("ansible_user: lab\nansible_become_password: secret\n")
    vault = [Path(sys.executable).with_name("ansible-vault"), "encrypt", f"--vault-password-file={password}", file]
    subprocess.run(vault, check=True, capture_output=True, env=ansible_environment())
    with pytest.raises(InventoryError, match="ANSIBLE_VAULT_PASSWORD_FILE"):
        load(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    assert load(folder).devices[0].connection == {"ansible_user": "lab"}


def test_the_server_can_be_a_device_too(tmp_path: Path) -> None:
    testbed = load(write(tmp_path / "lab", {"server": None}))
    assert [host.name for host in testbed.hosts] == ["server"]
    assert [client["client"] for client in testbed.clients] == ["server"]


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "lab", {"pi-1": None})
    (folder / "host_vars").mkdir()
    (folder / "host_vars" / "pi-1.yml").write_text("# the only Pi\ntestbed_clients:\n  - cpus: 1\n    memory: 2gg\n")
    with pytest.raises(InventoryError, match=r"host_vars/pi-1\.yml:4: pi-1: memory cannot be '2gg'"):
        load(folder)


def test_a_missing_folder_is_told_with_the_nearest_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "inventories" / "attic").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_inventory("attic") == tmp_path / "inventories" / "attic"
    with pytest.raises(InventoryError) as caught:
        find_inventory("atic")
    assert "did you mean attic?" in caught.value.hint


@pytest.mark.parametrize("name", ["~no-such-user", "~no-such-user/lab", "a" * 256])
def test_a_name_that_no_folder_can_have_is_told_as_any_other(name: str) -> None:
    for find, error in ((find_inventory, InventoryError), (find_experiment, ExperimentError), (find_run, ResultsError)):
        with pytest.raises(error, match="there is no"):
            find(name)


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        ("exec sleep 60", "Ansible has not read the folder within 0.2 s, and was ended", "takes too long; ansible-"),
        ("echo 'ValueError: odd' >&2; exit 1", "Ansible cannot read the folder: ValueError: odd", ""),
        ("kill -9 $$", "Ansible cannot read the folder: it ended with exit code -9", "ansible-inventory -i lab"),
    ],
)
def test_what_keeps_ansible_from_answering_is_said(
    script: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "lab", {"pi-1": None})
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(inventory, "_PATIENCE", 0.2 if "sleep" in script else 60)
    with pytest.raises(InventoryError) as caught:
        load(folder)
    assert caught.value.message == f"lab: {message}"
    assert hint in caught.value.hint
    [finding] = inventory.findings(folder)
    assert (finding.where, finding.what) == ("lab", message)


@pytest.mark.parametrize("name", templates())
def test_the_inventories_that_come_with_the_program_are_testbeds(name: str) -> None:
    assert load(find_inventory(name)).clients
    assert not [finding for finding in inventory.findings(find_inventory(name)) if finding.severity != "error"]


def test_a_profiles_network_is_in_force_where_the_inventory_says_so(tmp_path: Path) -> None:
    own = {"mine": {"cpus": 1, "network": {"rate_down": "5mbit"}}, "bare": {"cpus": 1}}
    known = inventory.profiles() | own
    assert inventory.device_network({}, "mine", known) == {}
    assert inventory.device_network("profile", "mine", known) == {"rate_down": "5mbit"}
    devices = {"pi-1": {"testbed_profile": "rpi3", "testbed_network": "profile", "testbed_own_profiles": own}}
    assert load(write(tmp_path / "lab", devices)).clients
    for number, (profile, said) in enumerate({"bare": "the profile bare has no network", "": "there is no"}.items()):
        devices["pi-1"]["testbed_profile"] = profile
        with pytest.raises(InventoryError, match=f"testbed_network is profile, and {said}"):
            load(write(tmp_path / f"lab-{number}", devices))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"speed": 0}, "speed cannot be 0"),
        ({"speed": float("inf")}, "speed cannot be inf"),
        ({"speed": True}, "speed cannot be True"),
        ({"network": "fast"}, "network cannot be 'fast'"),
        ({"network": {"rate": "5mbit"}}, "there is no 'rate' of a network"),
        ({"network": {"delay": "5"}}, "delay cannot be '5'"),
        ({"nettwork": {}}, "unknown key 'nettwork'"),
    ],
)
def test_a_profiles_own_figures_are_checked(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InventoryError, match=said):
        resolve_clients("pi-1", {}, PROFILES, {"mine": entry})


def no_process(folder: Path) -> dict[str, Any]:
    raise AssertionError("Ansible was asked again")


def lab(tmp_path: Path) -> Path:
    folder = write(
        tmp_path / "lab", {"pi-1": {"testbed_profile": "rpi3", "testbed_clients": [{"cpus": 1}, {"cpus": 0.5}]}}
    )
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "testbed.yml").write_text(
        "ansible_user: \"{{ lookup('env', 'USER') }}\"\n"
        'ansible_ssh_private_key_file: "{{ testbed_state_dir }}/key"\n'
        "testbed_own_profiles: {rpi3: {cpus: 8}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Ansible, which takes its time, makes of that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USER", "me")
        return inventory._ask_ansible(lab(tmp_path_factory.mktemp("asked")))


@pytest.fixture
def remembered(tmp_path: Path, view: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that was found right, and of which Ansible is not to be asked again."""
    folder = lab(tmp_path)
    monkeypatch.setenv("USER", "me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(inventory, "_ask_ansible", lambda folder: view)
    (tmp_path / "first.txt").write_text(repr(load(folder)))
    monkeypatch.setattr(inventory, "_ask_ansible", no_process)
    return folder


def test_a_folder_that_was_right_is_not_looked_at_again(remembered: Path, tmp_path: Path) -> None:
    assert repr(load(remembered)) == (tmp_path / "first.txt").read_text()
    stamp = tmp_path / ".fltestbed" / "lab" / "inventory.json"
    assert stamp.stat().st_mode & 0o777 == 0o600
    assert stamp.parent.stat().st_mode & 0o777 == 0o700


def edit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = folder / "hosts.yml"
    hosts.write_text(hosts.read_text() + "# a comment\n")


def add(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "host_vars").mkdir()
    (folder / "host_vars" / "pi-1.yml").write_text("testbed_client: {cpus: 1}\n")


def damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".fltestbed/lab/inventory.json").write_text("{")


def go_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(".fltestbed", "elsewhere/.fltestbed")
    monkeypatch.chdir("elsewhere")


def become_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "you")


def keep_the_cache_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/cache")  # noqa: S108


def look_something_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "group_vars" / "testbed.yml").write_text("ansible_user: \"{{ lookup('pipe', 'whoami') }}\"\n")


def run_a_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "more").write_text("#!/bin/sh\necho '{}'\n")
    (folder / "more").chmod(0o755)


@pytest.mark.parametrize(
    "change",
    [
        edit,
        add,
        damage,
        go_elsewhere,
        become_another,
        keep_the_cache_elsewhere,
        look_something_up,
        run_a_script,
    ],
)
def test_a_folder_is_looked_at_again_when_something_changed(
    change: Callable[[Path, pytest.MonkeyPatch], None], remembered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(remembered, monkeypatch)
    with pytest.raises(AssertionError, match="asked again"):
        load(remembered)


@pytest.mark.parametrize(
    ("name", "content", "plain"),
    [
        ("hosts.yml", "ansible_user: \"{{ lookup('env', 'HOME') }}/{{ inventory_dir | basename }}\"", True),
        ("hosts.ini", "[superlink]\nserver", True),
        ("hosts.yml", "ansible_user: \"{{ lookup('file', 'user') }}\"", False),
        ("hosts.yml", 'ansible_user: "{{ now() }}"', False),
        ("hosts.yml", 'ansible_user: "{% if x %}me{% endif %}"', False),
        ("more.yml", "plugin: constructed", False),
        ("more.py", "print(1)", False),
    ],
)
def test_only_what_says_the_same_the_next_time_is_remembered(
    name: str, content: str, plain: bool, tmp_path: Path
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / name).write_text(content)
    assert bool(inventory_stamp.key(tmp_path / "lab")) is plain
