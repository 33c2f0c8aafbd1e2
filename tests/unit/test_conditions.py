"""Conditions: what can be asked, of whom, and sessions that put back what they changed, in real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load

from fltestbed import conditions, inventory
from fltestbed.conditions import Action, Sessions, Target, action, targets
from fltestbed.errors import ConditionError
from fltestbed.inventory import Host

HERE = {"ansible_connection": "local", "ansible_user": "root", "ansible_become": False}
CLIENTS = (("pi-1", "pi-1"), ("pi-2", "pi-2"), ("laptop", "laptop-1"), ("laptop", "laptop-2"))
TESTBED = inventory.Testbed(
    name="lab",
    path=Path("lab"),
    server=Host("server"),
    devices=(Host("pi-1"), Host("pi-2"), Host("laptop", HERE)),
    clients=tuple(
        {"device": device, "client": client, "cpus": 1.0, "memory": None, "settings": {}} for device, client in CLIENTS
    ),
    root="/opt/fltestbed/lab",
    groups={"pis": ("pi-1", "pi-2"), "superlink": (), "supernodes": ("pi-1", "pi-2", "laptop")},
)


@pytest.mark.parametrize(
    ("kind", "given", "parameters"),
    [
        ("throttle", {"cpus": "0.5", "memory": "512m"}, {"cpus": 0.5, "memory": 512 * 2**20}),
        ("throttle", {"cpus": 2}, {"cpus": 2.0}),
        ("shape", {"rate": "5mbit"}, {"rate_up": 5e6, "rate_down": 5e6}),
        ("shape", {"rate": "5mbit", "rate_up": "500kbit"}, {"rate_up": 5e5, "rate_down": 5e6}),
        ("shape", {"delay": "80ms", "jitter": "10 ms", "loss": "1%"}, {"delay": 0.08, "jitter": 0.01, "loss": 0.01}),
        ("pause", {}, {}),
    ],
)
def test_an_action_is_in_plain_numbers(kind: str, given: dict[str, Any], parameters: dict[str, float]) -> None:
    assert action(kind, given) == Action(kind, pytest.approx(parameters))


@pytest.mark.parametrize(
    ("kind", "given", "key", "said"),
    [
        ("throtle", {}, "", "there is no condition 'throtle'"),
        ("throttle", {}, "", "throttle needs a parameter"),
        ("throttle", {"cpus": 0}, "cpus", "cpus cannot be 0"),
        ("throttle", {"memory": "1m"}, "memory", "memory cannot be '1m'"),
        ("throttle", {"rate": "5mbit"}, "rate", "throttle has no parameter 'rate'"),
        ("shape", {"rate": "5"}, "rate", "rate cannot be '5'"),
        ("shape", {"rate": "5mbps"}, "rate", "rate cannot be '5mbps'"),
        ("shape", {"rate_up": "1bit"}, "rate_up", "rate_up cannot be '1bit'"),
        ("shape", {"delay": "80"}, "delay", "delay cannot be '80'"),
        ("shape", {"delay": "2m"}, "delay", "delay cannot be '2m'"),
        ("shape", {"loss": "0.01"}, "loss", "loss cannot be '0.01'"),
        ("shape", {"loss": "100%"}, "loss", "loss cannot be '100%'"),
        ("shape", {"delay": "5ms", "jitter": "10ms"}, "jitter", "jitter is more than the delay"),
        ("kill", {"cpus": 1}, "cpus", "kill has no parameter 'cpus'"),
    ],
)
def test_an_action_that_cannot_be_is_refused_with_its_place(
    kind: str, given: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(ConditionError, match=said) as error:
        action(kind, given)
    assert error.value.key == key
    assert error.value.hint


@pytest.mark.parametrize(
    ("names", "kind", "found"),
    [
        (["pi-2", "pi-1"], "pause", (Target("pi-1"), Target("pi-2"))),
        (["pis", "pi-1"], "shape", (Target("pi-1"), Target("pi-2"))),
        (["all"], "restore", (Target("pi-1"), Target("pi-2"), Target("laptop"))),
        (["laptop-2"], "throttle", (Target("laptop", ("laptop-2",)),)),
        (["laptop-2", "laptop"], "throttle", (Target("laptop"),)),
        (["laptop-2", "laptop-1", "pi-1"], "kill", (Target("pi-1"), Target("laptop", ("laptop-1", "laptop-2")))),
    ],
)
def test_names_stand_for_devices_and_their_clients(names: list[str], kind: str, found: tuple[Target, ...]) -> None:
    assert targets(TESTBED, names, kind) == found


def test_a_share_is_drawn_with_a_seed() -> None:
    drawn = {seed: targets(TESTBED, ["all"], "pause", share=0.5, seed=seed) for seed in range(20)}
    assert drawn == {seed: targets(TESTBED, ["all"], "pause", share=0.5, seed=seed) for seed in range(20)}
    assert {len(found) for found in drawn.values()} == {2}
    assert len(set(drawn.values())) == 3
    assert len(targets(TESTBED, ["all"], "pause", share=0.01)) == 1


@pytest.mark.parametrize(
    ("names", "kind", "share", "said"),
    [
        (["pi-3"], "pause", 1, "no device, client or group 'pi-3'"),
        (["server"], "pause", 1, "no device, client or group 'server'"),
        (["superlink"], "pause", 1, "no device, client or group 'superlink'"),
        (["laptop-1"], "shape", 1, "shape acts on a device, and laptop-1 is a client of laptop"),
        (["laptop"], "reboot", 1, "reboot of laptop: it is this machine"),
        (["all"], "pause", 0, "share cannot be 0"),
        (["all"], "pause", 1.5, "share cannot be 1.5"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_host_is_asked(
    names: list[str], kind: str, share: float, said: str
) -> None:
    with pytest.raises(ConditionError, match=said):
        targets(TESTBED, names, kind, share=share)


def test_the_servers_own_host_cannot_be_cut_off_from_itself() -> None:
    both = inventory.Testbed("lab", Path("lab"), Host("pi-1"), TESTBED.devices, TESTBED.clients, TESTBED.root)
    for kind in ("shape", "partition"):
        with pytest.raises(ConditionError, match="the server's own host"):
            targets(both, ["pi-1"], kind)
    assert targets(both, ["pi-1"], "pause") == (Target("pi-1"),)


# Sessions. The device is this machine in a network of its own, with the real tc and iptables; it has no engine, so that
# where the server is, which its containers say, is told here.

LAB_IN_HERE = """
import subprocess, sys
from pathlib import Path
sys.modules["ansible.module_utils.testbed_in_force"].STATE = Path("{state}")
module.Conditions.server = lambda self: (["192.0.2.10"], [9092, 5000])
serve = lambda: module.serve({lease})
"""
PREPARE = """
ip link add wire type veth peer name far
ip address add 192.0.2.20/24 dev wire
ip link set wire up
ip link set far up
iptables -w -N DOCKER-USER
"""
DEVICE = inventory.Testbed("lab", Path("lab"), Host("server"), (Host("here", HERE),), (), "/opt/fltestbed/lab")
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")


class Net:
    """A network namespace, and how the tests look into it."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.state = state

    def run(self, *command: str) -> str:
        done = subprocess.run(["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, check=True)
        return done.stdout

    def changed(self) -> dict[str, bool]:
        """Return what of all that a session can do here is in force."""
        return {
            "shape": "htb fed:" in self.run("tc", "qdisc", "show"),
            "ifb": "ifb-fltestbed" in self.run("ip", "link"),
            "partition": "DROP" in self.run("iptables", "-w", "-S"),
            "state": (self.state / "conditions-lab.json").exists(),
        }

    def wait(self, seconds: float = 20) -> None:
        """Wait until nothing is changed any more."""
        until = time.monotonic() + seconds
        while any(self.changed().values()):
            assert time.monotonic() < until, self.changed()
            time.sleep(0.1)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    name = f"fltestbed-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        found = Net(name, tmp_path / "state")
        found.run("sh", "-ec", PREPARE)
        command = conditions.command
        monkeypatch.setattr(
            conditions, "command", lambda *arguments: ["ip", "netns", "exec", name, *command(*arguments)]
        )
        told = LAB_IN_HERE.format(state=found.state, lease=30)
        monkeypatch.setattr(conditions, "_BOOT", conditions._BOOT.replace("module.serve()", told + "serve()"))
        yield found
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


NOTHING = {"shape": False, "ifb": False, "partition": False, "state": False}
SHAPE = action("shape", {"rate": "5mbit"})


@root_alone
def test_a_session_changes_the_network_and_puts_it_back(net: Net) -> None:
    before = net.run("tc", "qdisc", "show"), net.run("iptables", "-w", "-S")
    with Sessions(DEVICE, ["here"]) as sessions:
        assert sessions.unreachable == {}
        began = time.time()
        shaped = sessions.apply("here", SHAPE)
        assert (shaped.ok, shaped.text) == (True, "network shaped to 5 mbit up, 5 mbit down")
        assert began <= shaped.started <= shaped.ended <= time.time()
        assert abs(shaped.clock or 1) < 0.5
        assert sessions.apply("here", Action("partition")).ok
        assert net.changed() == {"shape": True, "ifb": True, "partition": True, "state": True}
        assert (net.state / "conditions-lab.json").stat().st_mode & 0o777 == 0o600
        assert sessions.apply("here", Action("rejoin")).text == "put back: cut off from the server"
        assert net.changed() == {"shape": True, "ifb": True, "partition": False, "state": True}
        assert sessions.apply("here", action("shape", {"rate_up": "1mbit"})).ok
        assert "rate 1Mbit" in net.run("tc", "class", "show", "dev", "wire")
        assert not net.changed()["ifb"]
        assert sessions.apply("here", Action("restore")).ok
        assert net.changed() == NOTHING
        assert sessions.apply("here", SHAPE).ok
        ended = sessions.close()["here"]
    assert (ended.ok, ended.text) == (True, "put back: network shaped to 5 mbit up, 5 mbit down")
    assert net.changed() == NOTHING
    assert (net.run("tc", "qdisc", "show"), net.run("iptables", "-w", "-S")) == before


@root_alone
def test_a_session_puts_back_what_was_there_before_it(net: Net) -> None:
    with Sessions(DEVICE, ["here"]) as first:
        first.apply("here", SHAPE)
        with Sessions(DEVICE, ["here"]) as second:
            second.apply("here", action("shape", {"rate": "1mbit"}))
            assert "rate 1Mbit" in net.run("tc", "class", "show", "dev", "wire")
        assert "rate 5Mbit" in net.run("tc", "class", "show", "dev", "wire")
    assert net.changed() == NOTHING


@root_alone
def test_what_the_device_refuses_changes_nothing(net: Net) -> None:
    net.run("tc", "qdisc", "add", "dev", "wire", "root", "handle", "77:", "htb")
    with Sessions(DEVICE, ["here"]) as sessions:
        outcome = sessions.apply("here", SHAPE)
        assert not outcome.ok
        assert "wire has a queue of its own (htb 77:)" in outcome.text
        assert not sessions.check("here", SHAPE).ok
        assert sessions.check("here", Action("partition")).ok
        assert net.changed() == NOTHING


@root_alone
def test_delay_without_netem_is_refused_and_says_that_a_rate_works(net: Net) -> None:
    netem = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    has_netem = subprocess.run(["ip", "netns", "exec", net.name, *netem], check=False)
    with Sessions(DEVICE, ["here"]) as sessions:
        outcome = sessions.apply("here", action("shape", {"rate": "5mbit", "delay": "80ms", "loss": "1%"}))
        if has_netem.returncode == 0:
            assert outcome.ok
            assert net.run("tc", "qdisc", "show").count("netem") == 3
        else:
            assert "delay and loss needs netem" in outcome.text and "a rate alone works" in outcome.text
            assert net.changed() == NOTHING


@root_alone
def test_a_connection_that_broke_is_made_anew_and_its_changes_are_put_back(net: Net) -> None:
    with Sessions(DEVICE, ["here"]) as sessions:
        assert sessions.apply("here", SHAPE).ok
        process = sessions._channels["here"]._process
        assert process
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert net.changed()["shape"], "killed like that it can't put anything back"
        assert sessions.apply("here", Action("partition")).ok
    assert net.changed() == NOTHING


@root_alone
@pytest.mark.parametrize("end", [lambda process: process.kill(), lambda process: process.send_signal(signal.SIGINT)])
def test_a_controller_that_ends_leaves_nothing_changed(net: Net, end: Callable[[Any], None]) -> None:
    """The controller is a process of its own, which is killed or gets Ctrl-C."""
    program = textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = {sys.path!r}
        from fltestbed import conditions, inventory
        from test_conditions import DEVICE, SHAPE
        command = conditions.command
        conditions.command = lambda *given: ["ip", "netns", "exec", {net.name!r}, *command(*given)]
        conditions._BOOT = {conditions._BOOT!r}
        with conditions.Sessions(DEVICE, ["here"]) as sessions:
            assert sessions.apply("here", SHAPE).ok
            assert sessions.apply("here", conditions.Action("partition")).ok
            print("changed", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "changed\n"
        assert net.changed() == {"shape": True, "ifb": True, "partition": True, "state": True}
        end(process)
        process.wait(30)
        net.wait()


@root_alone
def test_a_session_without_a_sign_of_life_ends_by_itself(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_BEAT", 60)
    monkeypatch.setattr(conditions, "_BOOT", conditions._BOOT.replace("module.serve(30)", "module.serve(1)"))
    with Sessions(DEVICE, ["here"]) as sessions:
        assert sessions.apply("here", SHAPE).ok
        net.wait()


def test_a_device_that_does_not_answer_is_an_outcome() -> None:
    """Port 1 of this machine, where nobody listens."""
    silent = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    testbed = inventory.Testbed("lab", Path("lab"), Host("server"), (Host("pi", silent),), (), "/opt/fltestbed/lab")
    with Sessions(testbed, ["pi"]) as sessions:
        assert "refused" in sessions.unreachable["pi"]
        outcome = sessions.apply("pi", Action("kill"), timeout=5)
        assert not outcome.ok
        assert "no answer: " in outcome.text and "refused" in outcome.text
        assert outcome.clock is None
        ended = sessions.close()["pi"]
    assert not ended.ok and "fltestbed restore" in ended.text


# What is done on a device, from the parameters alone.

device_side = load("module_utils", "testbed_conditions")
FILTER = "protocol ip prio 1 u32 match ip {} 192.0.2.10/32 match ip protocol 6 0xff match ip {} 9092 0xffff {}"


def words(commands: list[list[str]]) -> list[str]:
    return [" ".join(command) for command in commands]


def test_a_rate_down_leaves_the_way_up_alone() -> None:
    commands = device_side.shape_commands("eth0", ["192.0.2.10"], [9092], {"rate_down": 5e6})
    assert words(commands) == [
        "ip link add ifb-fltestbed type ifb",
        "ip link set ifb-fltestbed up",
        "tc qdisc add dev ifb-fltestbed root handle fed: htb default 1 direct_qlen 1000",
        "tc class add dev ifb-fltestbed parent fed: classid fed:1 htb rate 5000000bit ceil 5000000bit quantum 1514",
        "tc qdisc add dev ifb-fltestbed parent fed:1 handle fee: bfifo limit 131072",
        "tc qdisc add dev eth0 handle ffff: ingress",
        "tc filter add dev eth0 parent ffff: "
        + FILTER.format("src", "sport", "action mirred egress redirect dev ifb-fltestbed"),
    ]


def test_delay_jitter_and_loss_are_below_the_rate_in_both_directions() -> None:
    parameters = {"rate_up": 8e6, "delay": 0.08, "jitter": 0.01, "loss": 0.015}
    commands = words(device_side.shape_commands("eth0", ["192.0.2.10"], [9092, 5000], parameters))
    assert commands[2:5] == [
        "tc qdisc add dev eth0 parent fed:1 handle fee: netem limit 193 delay 80000us 10000us loss 1.5%",
        "tc filter add dev eth0 parent fed: " + FILTER.format("dst", "dport", "flowid fed:1"),
        "tc filter add dev eth0 parent fed: " + FILTER.format("dst", "dport", "flowid fed:1").replace("9092", "5000"),
    ]
    assert any(
        line.startswith("tc class add dev ifb-fltestbed") and "rate 100000000000bit" in line for line in commands
    )
    assert sum("netem" in line and "delay 80000us 10000us loss 1.5%" in line for line in commands) == 2


def test_a_partition_drops_the_testbeds_ports_both_ways_and_nothing_else() -> None:
    rules = words(device_side.partition_rules("fltestbed-lab", ["192.0.2.10"], [9092]))
    drop = "-m comment --comment fltestbed-lab -j DROP"
    assert rules == [
        f"DOCKER-USER -p tcp -d 192.0.2.10 --dport 9092 {drop}",
        f"DOCKER-USER -p tcp -s 192.0.2.10 --sport 9092 {drop}",
        f"OUTPUT -p tcp -d 192.0.2.10 --dport 9092 {drop}",
        f"INPUT -p tcp -s 192.0.2.10 --sport 9092 {drop}",
    ]


class Recorder(device_side.Conditions):  # type: ignore[name-defined, misc]
    """Conditions of which only the file is real: it tells what the file said at the moment of a change."""

    def __init__(self, session: str = "", broken: bool = False) -> None:
        super().__init__("fltestbed-lab", session)
        self.broken = broken
        self.seen: list[tuple[str, list[str]]] = []

    def check(self, *asked: Any) -> None:
        pass

    def enforce(self, kind: str, client: str) -> None:
        self.seen.append((kind, sorted(self.read())))
        if self.broken:
            raise device_side.Refused("the kernel will not")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("ansible.module_utils.testbed_in_force.STATE", tmp_path / "state")
    return tmp_path / "state" / "conditions-lab.json"


def test_the_file_says_what_is_changed_from_before_the_change_until_after_it_is_undone(state: Path) -> None:
    here = Recorder()
    here.apply("throttle", {"cpus": 0.5}, ["a", "b"])
    here.apply("partition", {}, [])
    here.apply("rejoin", {}, [])
    here.apply("restore", {}, ["b"])
    assert [row["text"] for row in here.standing()] == ["a throttled to 0.5 cpus"]
    here.apply("throttle", {"memory": 2**29}, ["a"])
    assert [row["text"] for row in here.standing()] == ["a throttled to 0.5 cpus, 512m of memory"]
    here.apply("restore", {}, [])
    assert not state.exists()
    both = ["throttle a", "throttle b"]
    assert here.seen == [
        ("throttle", both[:1]),
        ("throttle", both),
        ("partition", ["partition", *both]),
        ("partition", ["partition", *both]),
        ("throttle", both),
        ("throttle", both[:1]),
        ("throttle", both[:1]),
    ]


def test_what_fails_is_not_in_force_and_what_cannot_be_undone_stays_noted(state: Path) -> None:
    with pytest.raises(device_side.Refused, match="the kernel will not"):
        Recorder(broken=True).apply("partition", {}, [])
    assert not state.exists()
    Recorder().apply("partition", {}, [])
    with pytest.raises(device_side.Refused, match="not put back: cut off from the server: the kernel will not"):
        Recorder(broken=True).apply("restore", {}, [])
    assert [row["kind"] for row in Recorder().standing()] == ["partition"]


def test_a_reboot_loses_the_network_and_keep_puts_it_in_force_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Recorder()
    here.apply("throttle", {"cpus": 0.5}, ["a"])
    here.apply("network", {"delay": 0.1}, [])
    for module in (device_side, sys.modules["ansible.module_utils.testbed_in_force"]):
        monkeypatch.setattr(module, "boot", lambda: "the next")
    assert [(row["kind"], row["lost"]) for row in here.standing()] == [("throttle", False), ("network", True)]
    assert here.apply("keep", {}, []) == "in force again: network of the inventory: 100 ms delay"
    assert here.seen[-1][0] == "network"
    assert not any(row["lost"] for row in here.standing())
    assert here.apply("restore", {}, []) == "put back: a throttled to 0.5 cpus"
    assert here.apply("lift", {}, []) == "put back: network of the inventory: 100 ms delay"
    assert not state.exists()


def test_a_session_ends_with_what_was_before_it(state: Path) -> None:
    Recorder().apply("throttle", {"cpus": 0.5}, ["a"])
    session = Recorder("one")
    session.apply("throttle", {"cpus": 0.1}, ["a"])
    session.apply("throttle", {"cpus": 0.2}, ["a"])
    session.apply("partition", {}, [])
    assert Recorder("one").end() == "put back: a throttled to 0.2 cpus; cut off from the server"
    assert [row["text"] for row in Recorder().standing()] == ["a throttled to 0.5 cpus"]
