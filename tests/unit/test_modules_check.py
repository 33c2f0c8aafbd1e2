"""testbed_check on this machine: real ports, real locks, real files; where a defect can't be made here, its file is."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run

check = load("modules", "testbed_check")
PLENTY = {"packages": 0, "image": 0, "data": 0}


def host(**params: Any) -> Any:
    """Return what the checks look at: this machine, asked for what `params` say."""
    defaults = {
        "root": "/opt/fltestbed/lab",
        "project": "fltestbed-lab",
        "clients": [],
        "architectures": [os.uname().machine],
        "client_memory_mb": 512,
        "system_memory_mb": 0,
        "disk_mb": PLENTY,
        "docker_repository": False,
        "serve": [],
        "bind": [],
        "cadvisor": {},
        "dials": {},
        "build": {},
        "address": "",
        "reach": [],
        "wait": 0,
        "now": 0.0,
        "fix": [],
    }
    return check.Host(defaults | params)


def client(cpus: float | None = None, memory: int | None = None) -> dict[str, Any]:
    return {"client": "pi-1", "cpus": cpus, "memory": memory}


def only(found: Iterator[dict[str, Any]], severity: str = "error") -> dict[str, Any]:
    """Return the one finding of a check, which says what to do."""
    (finding,) = found
    assert finding["severity"] == severity
    assert finding["fix"]
    return finding


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def test_a_machine_in_order_has_no_finding() -> None:
    answer = run(
        check,
        root="/opt/fltestbed/lab",
        project="fltestbed-lab",
        architectures=[os.uname().machine],
        client_memory_mb=512,
        system_memory_mb=0,
        disk_mb=PLENTY,
    )
    assert answer["changed"] is False
    assert answer["checked"] == list(check.CHECKS)
    # What the machine lacks is true of it: this is no host of a testbed.
    assert {finding["where"] for finding in answer["findings"]} <= {"root", "packages", "Docker", "leftovers"}
    assert answer["facts"]["arch"] == os.uname().machine
    assert answer["facts"]["memory"] > 2**28


def test_limits_that_the_machine_cannot_hold() -> None:
    asked = host(clients=[client(cpus=4096, memory=2**50)])
    assert "4096 cores" in only(check.check_cpu(asked))["what"]
    assert "lower memory" in only(check.check_memory(asked))["fix"]


def test_limits_that_are_tight() -> None:
    machine = host()
    half = [client(cpus=machine.cpus * 0.6, memory=2**30)] * 2
    assert "slow each other" in only(check.check_cpu(host(clients=half)), "warning")["what"]
    tight = host(clients=half, system_memory_mb=machine.memory // 2**20)
    assert "MB to the rest" in only(check.check_memory(tight), "warning")["fix"]
    small = host(clients=[client(memory=448 * 2**20)])
    assert "would kill it" in only(check.check_memory(small), "warning")["what"]


def test_data_that_are_not_there_or_may_not_be_read(tmp_path: Path) -> None:
    def found(path: Path) -> Iterator[dict[str, Any]]:
        return check.check_data(host(clients=[client() | {"data": str(path)}], uid=10001))

    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").touch(0o640)
    assert f"no {tmp_path}/none" in only(found(tmp_path / "none"))["what"]
    tmp_path.chmod(0o755)
    assert "may not be read" in only(found(tmp_path))["what"]
    (tmp_path / "train/a.png").chmod(0o644)
    (tmp_path / "train/b.png").symlink_to("gone.png")
    assert list(found(tmp_path)) == list(check.check_data(host(clients=[client()]))) == []


def test_another_architecture() -> None:
    assert os.uname().machine in only(check.check_architecture(host(architectures=["s390x"])))["what"]


def test_32_bit_programs_on_a_64_bit_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check.check_architecture(host())) == []
    program = tmp_path / "sh"
    program.write_bytes(b"\x7fELF\x01\x01\x01")
    monkeypatch.setattr(check, "USERLAND", program)
    assert "32-bit" in only(check.check_architecture(host()))["what"]


def test_a_kernel_whose_modules_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = host()
    machine.is_container, machine.docker = False, {"running": False}
    (tmp_path / "1.2.3-another").mkdir()
    monkeypatch.setattr(check, "MODULES", tmp_path)
    assert "restart the device" in only(check.check_kernel(machine))["fix"]
    (tmp_path / os.uname().release).mkdir()
    assert list(check.check_kernel(machine)) == []


def test_a_memory_controller_that_is_off_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = tmp_path / "cmdline.txt"
    line.write_text("console=tty1 root=PARTUUID=1 rootwait\n")
    monkeypatch.setattr(check, "CMDLINES", (tmp_path / "elsewhere", line))
    machine = host(clients=[client(memory=2**30)])
    machine.cgroup = {"version": 2, "memory": False, "cpu": True}
    assert only(check.check_cgroups(machine))["safe"]
    assert str(line) in check.fix_cgroups(machine)
    assert line.read_text() == "console=tty1 root=PARTUUID=1 rootwait cgroup_enable=memory cgroup_memory=1\n"
    assert (tmp_path / "cmdline.txt.before-fltestbed").read_text() == "console=tty1 root=PARTUUID=1 rootwait\n"
    now = only(check.check_cgroups(machine))
    assert not now["safe"] and "restart" in now["fix"]
    machine.params["clients"] = [client()]
    assert only(check.check_cgroups(machine), "warning")


def test_a_full_disk() -> None:
    found = list(check.check_disk(host(disk_mb=PLENTY | {"data": 10**9})))
    assert found and all("1000000000 MB are needed" in each["what"] or "2000000000" in each["what"] for each in found)
    assert list(check.check_disk(host())) == []


def test_disk_is_needed_where_the_engine_keeps_its_data_and_its_images(tmp_path: Path) -> None:
    machine = host(root=str(tmp_path), disk_mb=PLENTY | {"image": 10**9})
    machine.images, machine.docker = {}, {"version": "29", "folder": str(tmp_path), "image_folder": "/proc/none/here"}
    assert "1000000000 MB are needed" in only(check.check_disk(machine))["what"]
    machine.images = {"fltestbed/app:1": "id"}
    assert list(check.check_disk(machine)) == []
    machine.docker["version"] = None
    machine.params["disk_mb"] = PLENTY | {"packages": 10**9}
    assert "1000000000 MB are needed" in only(check.check_disk(machine))["what"]


@pytest.mark.parametrize(
    ("options", "info", "wanted"),
    [
        ({}, {}, ("/var/lib/docker", "/var/lib/docker", "/run/containerd/containerd.sock")),
        ({"data-root": "/ssd"}, {}, ("/ssd", "/ssd", "/run/containerd/containerd.sock")),
        ({"data-root": "/new"}, {"DockerRootDir": "/ssd"}, ("/ssd", "/ssd", "/run/containerd/containerd.sock")),
        (
            {},
            {
                "DockerRootDir": "/ssd",
                "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
                "Containerd": {"Address": "/run/containerd/containerd.sock"},
            },
            ("/ssd", "/var/lib/containerd", "/run/containerd/containerd.sock"),
        ),
        (
            {},
            {
                "DockerRootDir": "/ssd",
                "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
                "Containerd": {"Address": "/var/run/docker/containerd/containerd.sock"},
            },
            ("/ssd", "/ssd", "/var/run/docker/containerd/containerd.sock"),
        ),
    ],
)
def test_where_an_engine_keeps_what_it_has(
    options: dict[str, Any], info: dict[str, Any], wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an engine's /info and its daemon.json say it; the last one starts containerd by itself."""
    module = load("module_utils", "testbed_host")
    monkeypatch.setattr(module, "OWN_CONTAINERD", Path("/none"))
    assert tuple(module.places(options, info).values()) == wanted


def test_names_that_containers_cannot_look_up_are_said_with_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "hosts"
    own.write_text("127.0.0.1 localhost\n192.0.2.7\tlan-pi Pi-7  # pi-9\n")
    monkeypatch.setattr(check, "NAMES", own)
    known = {"pi-1.local": "192.0.2.1", "pi-7": "192.0.2.7", "pi-9": "192.0.2.9", "pi-2.corp.local": "192.0.2.2"}

    def look_up(name: str, *_: object) -> list[Any]:
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET6, 1, 6, "", ("fe80::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", (known[name], 0))]

    monkeypatch.setattr(check.socket, "getaddrinfo", look_up)
    dials = {"pi-0": "192.0.2.20", "pi-6": "2001:db8::6", **{name: name for name in known}, "alias": "my-pi"}
    found = list(check.check_names(host(dials=dials)))
    assert [(each["severity"], each["what"].split(" by which it would dial ")[1].split(",")[0]) for each in found] == [
        ("warning", "pi-1.local"),
        ("warning", "pi-7"),
        ("warning", "alias"),
    ]
    assert "testbed_exporter_address: 192.0.2.1;" in found[0]["fix"]


def test_a_build_is_tried_where_one_is_wanted(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = f"http://127.0.0.1:{free_port}/debian/dists/bookworm/InRelease"
    wanted = {os.uname().machine: {"builder": "server", "mb": 4000, "debian": True, "mirror": mirror}}
    assert check.build(host(build={"s390x": {}})) is None
    machine = host(build=wanted)
    machine.images = {}
    found = check.build(machine)
    assert (found["builder"], found["mb"]) == ("server", 4000) and found["silent"][mirror]
    machine.images = {"fltestbed/proxy:1": "id"}
    assert check.build(machine)["silent"] == {}, "what Debian's packages make is there"
    machine.images = {}
    wanted[os.uname().machine]["mirror"] = ""
    for silent in ({}, {"http://a": "no route"}, {"http://a": "no route", "http://b": "no route"}):
        monkeypatch.setattr(check, "mirrors", lambda silent=silent: (silent, ["http://a", "http://b"]))
        assert check.build(machine)["silent"] == (silent if len(silent) == 2 else {})
    wanted[os.uname().machine]["debian"] = False
    assert check.build(machine)["silent"] == {}


def test_a_port_is_named_with_its_holder(free_port: int) -> None:
    server = host(serve=[free_port])
    assert list(check.check_ports(server)) == []
    assert server.unserved == [free_port]
    with socket.create_server(("127.0.0.1", free_port)):
        server = host(serve=[free_port])
        assert f"(process {os.getpid()})" in only(check.check_ports(server))["what"]
        assert server.unserved == []
        version = server.cgroup["version"]
        assert only(check.check_ports(host(cadvisor={"port": free_port, "cgroups": [version]})))
        assert list(check.check_ports(host(cadvisor={"port": free_port, "cgroups": [3 - version]}))) == []


def test_server_and_device_meet_and_nothing_goes_on_listening(free_port: int) -> None:
    listener = check.listen([free_port], 3600)
    try:
        assert check.connect("127.0.0.1", free_port) is None
        # Another check takes it for what it is, and ends it.
        server = host(serve=[free_port])
        assert list(check.check_ports(server)) == []
        assert server.unserved == [free_port]
    finally:
        listener.kill()
        listener.wait(60)
    assert isinstance(check.connect("127.0.0.1", free_port), ConnectionRefusedError)


def test_a_listener_ends_by_itself(free_port: int) -> None:
    check.listen([free_port], 0).wait(60)
    assert isinstance(check.connect("127.0.0.1", free_port), ConnectionRefusedError)
    assert check.listen([], 3600) is None


def test_a_server_that_is_not_reached(free_port: int) -> None:
    refused = only(check.check_server(host(address="127.0.0.1", reach=[free_port])))
    assert f"port {free_port}/tcp" in refused["what"] and refused["refused"]
    unknown = only(check.check_server(host(address="no-such-host.invalid", reach=[free_port])))
    assert "cannot be resolved" in unknown["what"] and not unknown["refused"]


def test_a_held_package_lock_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    assert check.lock_holder(lock) is None
    assert check.lock_holder(tmp_path / "none") is None
    script = (
        f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert check.lock_holder(lock) == other.pid
        assert check.process(other.pid).startswith("python")
        other.kill()


@pytest.mark.parametrize(
    ("system", "version", "docker", "wanted"),
    [
        ("debian", "13", {"version": None, "compose": None}, ["docker.io", "iptables", "docker-cli", "docker-compose"]),
        ("debian", "13", {"version": "26", "compose": None}, ["docker-cli", "docker-compose"]),
        ("debian", "12", {"version": None, "compose": "2"}, ["docker.io", "iptables"]),
        ("debian", "12", {"version": "26", "compose": None}, None),
        ("ubuntu", "24.04", {"version": None, "compose": None}, ["docker.io", "iptables", "docker-compose-v2"]),
        ("fedora", "42", {"version": None, "compose": None}, None),
        ("fedora", "42", {"version": "28", "compose": "2"}, []),
    ],
)
def test_packages_that_are_missing(
    system: str, version: str, docker: dict[str, Any], wanted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "says", lambda *_command: "")
    machine = host()
    machine.os = {"id": system, "version": version, "name": f"{system} {version}"}
    machine.docker, machine.daemon_json_error = docker, None
    assert check.packages(machine) == wanted
    if wanted is None:
        assert "install it by hand" in only(check.check_packages(machine))["fix"]
    machine.params["docker_repository"] = True
    assert ("docker-compose-plugin" in check.packages(machine)) is (docker["compose"] is None)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="asks apt")
def test_an_interrupted_dpkg_and_an_unreachable_mirror(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates" / "0001").touch()
    (tmp_path / "sources.list").write_text(f"deb http://127.0.0.1:{free_port}/debian stable main\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setattr(check, "DPKG_UPDATES", tmp_path / "updates")
    machine = host()
    machine.os = {"id": "debian", "version": "13", "name": "Debian 13"}
    machine.docker, machine.daemon_json_error = {"version": None, "compose": None}, None
    errors = [found for found in check.check_packages(machine) if found["severity"] == "error"]
    assert "dpkg --configure -a" in errors[0]["fix"]
    assert f"http://127.0.0.1:{free_port}" in errors[1]["what"]


def test_leftovers_are_found_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "containers", lambda: [])
    monkeypatch.setattr(check, "BUILD_DIR", tmp_path)
    for name in ("build-old", "build-new", "another"):
        (tmp_path / name).mkdir()
    for name in ("build-old", "another"):
        os.utime(tmp_path / name, (0, 0))
    found = only(check.check_leftovers(host()), "warning")
    assert found["safe"] and "build-old" in found["what"] and "build-new" not in found["what"]
    check.fix_leftovers(host())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "build-new"]
    assert list(check.check_leftovers(host())) == []


def test_a_broken_daemon_json_is_named() -> None:
    machine = host()
    machine.daemon_json_error = "Expecting value: line 1"
    assert "correct it by hand" in only(check.check_docker(machine))["fix"]
