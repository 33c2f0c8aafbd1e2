"""What the measurement reads of the kernel, and its loads, run for real as in a container."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ansible_modules
import pytest
from ansible.module_utils import testbed_cgroup, testbed_load

verify = ansible_modules.load("modules", "testbed_verify")
RECORDED = Path(__file__).with_name("recorded")
LOAD = [sys.executable, str(ansible_modules.PLUGINS / "module_utils/testbed_load.py")]
MIB = 2**20

TC = {  # as iproute2 says it of a device that testbed_conditions shaped, with a kernel that has netem
    ("qdisc", "show"): """\
qdisc noqueue 0: dev lo root refcnt 2
qdisc htb fed: dev eth0 root refcnt 2 r2q 10 default 0 direct_packets_stat 0 direct_qlen 1000
qdisc ingress ffff: dev eth0 parent ffff:fff1 ----------------
qdisc htb fed: dev ifb-fltestbed root refcnt 2 r2q 10 default 0x1 direct_packets_stat 0 direct_qlen 1000
qdisc netem fee: dev eth0 parent fed:1 limit 1000 delay 40ms  10ms loss 1%
qdisc netem fee: dev ifb-fltestbed parent fed:1 limit 1000 delay 500us
""",
    ("class", "show", "dev", "eth0"): (
        "class htb fed:1 root leaf fee: prio 0 rate 1500Kbit ceil 1500Kbit burst 1599b cburst 1599b \n"
    ),
    ("class", "show", "dev", "ifb-fltestbed"): (
        "class htb fed:1 root leaf fee: prio 0 rate 100Gbit ceil 100Gbit burst 0b cburst 0b \n"
    ),
}


def test_what_tc_says_is_read() -> None:
    assert verify.shaped(lambda *arguments: TC[arguments]) == {
        "rate_up": 1.5e6,
        "delay_up": 0.04,
        "loss_up": 0.01,
        "delay_down": 0.0005,
    }
    assert verify.shaped(lambda *_: "") == {}


# Version 2 has not been seen on the machines that build this: its files are written after the kernel's documentation.
V2 = {
    "cpu.stat": "usage_usec 2500000\nuser_usec 2400000\nsystem_usec 100000\nnr_periods 60\nnr_throttled 50\n"
    "throttled_usec 2400000\n",
    "memory.max": "671088640\n",
    "memory.current": "150994944\n",
    "memory.stat": "anon 120000000\nfile 20000000\ninactive_file 16777216\nactive_file 4194304\n",
    "cgroup.procs": "7\n9\n",
}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the kernel's control groups."""
    monkeypatch.setattr(testbed_cgroup, "ROOT", tmp_path)
    return tmp_path


def put(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_a_control_group_of_version_2_is_read(kernel: Path) -> None:
    folder = kernel / "system.slice" / "docker-abc.scope"
    put(folder, V2)
    put(folder.parent, V2 | {"memory.max": "max\n"})
    group = testbed_cgroup.Cgroup({"": folder})
    assert group.cpu() == {"seconds": 2.5, "periods": 60, "throttled": 50}
    assert group.memory() == {"limit": 640 * MIB, "used": 124 * MIB, "working_set": 128 * MIB}
    assert group.processes() == [7, 9]
    # The topmost group of a machine has no limits; that of a container has.
    assert [one.memory()["limit"] for one in group.above()] == [None]
    put(kernel, V2 | {"memory.max": "1073741824\n"})
    assert [one.memory()["limit"] for one in group.above()] == [None, 1024 * MIB]


def test_a_control_group_of_version_1_is_read(kernel: Path) -> None:
    """Recorded on a virtual device: a client of 640m and half a core, below a device of 1g."""
    recorded = json.loads((RECORDED / "cgroup-v1.json").read_text())
    for name, content in recorded["files"].items():
        put((kernel / name).parent, {Path(name).name: content})
    group = testbed_cgroup.Cgroup({name: kernel / name / recorded["group"] for name in ("cpu", "cpuacct", "memory")})
    found = group.cpu()
    usage = recorded["files"][f"cpuacct/{recorded['group']}/cpuacct.usage"]
    assert found["seconds"] == pytest.approx(int(usage) / 1e9)
    assert found["periods"] >= found["throttled"] > 0
    assert group.memory()["limit"] == 640 * MIB
    assert 50 * MIB < group.memory()["used"] < 640 * MIB
    assert [one.memory()["limit"] for one in group.above()] == [None, 1024 * MIB]


@pytest.mark.parametrize("groups", ["0::/docker/abc\n", "4:cpu,cpuacct:/docker/abc\n0::/\n"])
def test_a_control_group_without_the_memory_controller_is_read(
    kernel: Path, groups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Raspberry Pi OS has it: a limit that was asked for is none, and nothing is filled."""
    for name in ("docker/abc", "cpu/docker/abc", "cpuacct/docker/abc"):
        put(kernel / name, {"cpu.stat": V2["cpu.stat"], "cpuacct.usage": "2500000000\n", "cgroup.procs": "7\n9\n"})
    put(kernel / "proc", {"cgroup": groups})
    monkeypatch.setattr(testbed_cgroup, "Path", lambda _path: kernel / "proc/cgroup")
    group = testbed_cgroup.Cgroup.of(7)
    assert group.memory() == {"limit": None, "used": None, "working_set": None}
    assert group.cpu()["seconds"] == 2.5
    assert group.processes() == [7, 9]
    assert verify.memory("none", group, 640 * MIB) == {"limit": None, "room": None, "taken": None, "killed": None}


def test_the_memory_that_is_left_is_that_of_the_tightest_group(kernel: Path) -> None:
    folder = kernel / "docker" / "abc"
    put(folder, V2)
    put(folder.parent, V2 | {"memory.max": "max\n"})
    put(kernel, V2 | {"memory.max": str(128 * MIB), "memory.current": str(120 * MIB)})
    left = 128 * MIB - (120 * MIB - 16777216 - 4194304)
    assert verify.room(testbed_cgroup.Cgroup({"": folder})) == left


def lines(process: "subprocess.Popen[str]") -> Iterator[object]:
    assert process.stdout
    yield from map(json.loads, process.stdout)


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*LOAD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_busy_load_says_how_fast_a_core_is_and_ends_with_its_input() -> None:
    with start("busy", "60") as process:
        said = lines(process)
        first = next(said)
        assert isinstance(first, dict)
        assert first["cores"] == min(256, len(os.sched_getaffinity(0))) and first["turns"] > 1e5
        assert next(said) == "busy"
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_memory_is_taken_up_to_the_first_mark_and_on_when_told() -> None:
    with start("fill", "60") as process:
        assert process.stdin
        said = lines(process)
        assert next(said) == 0
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
        process.stdin.write(f"{10 * MIB} {11 * MIB}\n")
        process.stdin.flush()
        assert [next(said) for _ in range(4)] == [4 * MIB, 8 * MIB, 10 * MIB, "first"]
        resident = Path(f"/proc/{process.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
        assert int(resident) * 1024 > 10 * MIB
        process.stdin.write("on\n")
        process.stdin.flush()
        assert [next(said) for _ in range(5)][-2:] == [11 * MIB, "whole"]
        process.kill()
        assert process.wait(10) == -signal.SIGKILL


@pytest.fixture
def server() -> Iterator[tuple[int, list[int]]]:
    """A server that answers a GET with 40 MB, and reads all else; yields its port and how much it has read."""
    read = [0]

    def serve(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):  # who is content goes
            if (request := peer.recv(65536)).startswith(b"GET"):
                for _ in range(40):
                    peer.sendall(bytes(10**6))
            read[0] += len(request)
            while part := peer.recv(1 << 20):
                read[0] += len(part)

    def accept() -> None:
        while True:
            try:
                peer = door.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield door.getsockname()[1], read
        door.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_what_comes_is_counted(server: tuple[int, list[int]]) -> None:
    with socket.create_connection(("127.0.0.1", server[0])) as peer:
        progress = []
        for each in testbed_load.fetch(peer, "server", "sha256:0", 30):
            progress.append(each)
            if each[1] >= 40 * 10**6:
                break
    assert progress[-1][1] == 40 * 10**6
    assert (testbed_load.rate(progress) or 0) > 1e6


def test_what_was_acknowledged_is_counted_and_not_what_waits_to_be_sent(server: tuple[int, list[int]]) -> None:
    port, read = server
    with socket.create_connection(("127.0.0.1", port)) as peer:
        acknowledged = [count for _, count in testbed_load.send(peer, "server", "", 0.3)]
        assert acknowledged == sorted(acknowledged)
        assert acknowledged[-1] > 0
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1):
            pass
    assert acknowledged[-1] <= read[0] + 1  # the packet that opens a connection counts as a byte


def test_connections_that_are_not_made_are_lost(server: tuple[int, list[int]]) -> None:
    took = testbed_load.connects("127.0.0.1", server[0], 20, 0.001)
    assert len(took) == 20
    assert all(each is not None and 0 < each < testbed_load.LOST for each in took)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        assert testbed_load.connects("127.0.0.1", closed.getsockname()[1], 2, 0.001) == [None, None]


def test_a_rate_leaves_out_what_a_link_had_saved_up() -> None:
    """A burst of 1 MB in the first second, then 100 kB/s."""
    progress = [(0.01, 10**6), *((1 + 0.1 * step, 10**6 + 10**4 * step) for step in range(40))]
    clock = iter([0.0])

    def steps() -> Iterator[tuple[float, int]]:
        yield from progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testbed_load.time, "monotonic", lambda: next(clock))
        assert testbed_load.rate(steps()) == pytest.approx(1e5)
    assert testbed_load.rate(iter([])) is None
