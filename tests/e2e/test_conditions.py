"""Conditions on a real device: changed while it runs, read back, never without SSH, and put back whatever happens."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .lab import Lab, wait_for

DEVICE = "pi-3"
RATE = 4e6  # bit/s
PAYLOAD = 10**6  # bytes
SLOW = 0.7 * 8 * PAYLOAD / RATE  # s that a transfer takes at least at that rate; a burst may go ahead
# Moves bytes between the device and the server's two ports, as Flower and Docker do, and prints the seconds that took.
TRANSFER = """
import ssl, socket, sys, time
server, port, method, path, size = sys.argv[1], int(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5])
tls = ssl.create_default_context(); tls.check_hostname = False; tls.verify_mode = ssl.CERT_NONE
began = time.monotonic()
with tls.wrap_socket(socket.create_connection((server, port), 5)) as wire:
    wire.settimeout(60)
    sent = size if method == "POST" else 0
    head = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {sent}", "", ""]
    wire.sendall("\\r\\n".join(head).encode() + bytes(sent))
    left = 1 if sent else size
    while left > 0:
        left -= len(wire.recv(65536)) or sys.exit("the server hung up")
print(time.monotonic() - began)
"""


class Device:
    """The device as the tests look at it, past fltestbed."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.address, self.server = (self._address(name) for name in (DEVICE, "server"))
        images = f"/opt/fltestbed/{lab.name}/images/blobs/sha256"
        listing = lab.on("server", "find", images, "-size", "+3M", "-printf", "%f ")
        self.blob = f"/v2/fltestbed/blobs/sha256:{listing.split()[0]}"

    def _address(self, name: str) -> str:
        look = ["docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"]
        done = subprocess.run([*look, f"{self.lab.name}-{name}"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def ssh(self, *command: str) -> str:
        folder = self.lab.folder / ".fltestbed" / self.lab.name / "ssh"
        options = ["-i", str(folder / "id_ed25519"), "-o", f"UserKnownHostsFile={folder / 'known_hosts'}"]
        options += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
        done = subprocess.run(
            ["ssh", *options, f"pi@{self.address}", *command], capture_output=True, check=True, timeout=60
        )
        return done.stdout.decode()

    def answers(self) -> bool:
        try:
            return self.ssh("echo", "there") == "there\n"
        except subprocess.CalledProcessError:
            return False

    def download(self) -> float:
        return self._transfer("5000", "GET", self.blob)

    def upload(self) -> float:
        return self._transfer("9092", "POST", "/v1/fleet/nothing")

    def _transfer(self, port: str, *what: str) -> float:
        return float(self.lab.on(DEVICE, "python3", "-c", TRANSFER, self.server, port, *what, str(PAYLOAD)))

    def reaches_server(self) -> bool:
        probe = "import socket, sys; socket.create_connection(tuple(sys.argv[1:3]), 3)"
        with_docker = ["docker", "exec", f"{self.lab.name}-{DEVICE}", "python3", "-c", probe]
        return subprocess.run([*with_docker, self.server, "9092"], capture_output=True, check=False).returncode == 0

    def state(self, service: str) -> tuple[str, str]:
        """Return a container's state and when it was started."""
        name = f"fltestbed-{self.lab.name}-{service}-{DEVICE}-1"
        state, started = self.lab.on(
            DEVICE, "docker", "inspect", "-f", "{{.State.Status}} {{.State.StartedAt}}", name
        ).split()
        return state, started

    def health(self) -> list[str]:
        names = [f"fltestbed-{self.lab.name}-{service}-{DEVICE}-1" for service in ("supernode", "client")]
        return self.lab.on(DEVICE, "docker", "inspect", "-f", "{{.State.Health.Status}}", *names).split()

    def traces(self) -> str:
        """Return all by which a condition can be noticed."""
        look = (
            "tc qdisc show | sed 's/direct_packets_stat [0-9]*//'; ls /sys/class/net; iptables -w -S; "
            "ls /var/lib/fltestbed; "
            f"ls /opt/fltestbed/{self.lab.name}/textfile; docker inspect -f "
            "'{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.State.Paused}}' "
            f"fltestbed-{self.lab.name}-client-{DEVICE}-1"
        )
        lines = self.lab.on(DEVICE, "sh", "-c", look).splitlines()
        return "\n".join(line for line in lines if "veth" not in line and "br-" not in line)


@pytest.fixture(scope="module")
def device(lab: Lab) -> Device:
    return Device(lab)


@pytest.fixture(autouse=True)
def as_before(lab: Lab, device: Device) -> Iterator[None]:
    """Every test leaves the device as it was, and what `up` would do is nothing."""
    before = device.traces()
    yield
    assert device.traces() == before
    wait_for("healthy containers", lambda: device.health() == ["healthy"] * 2, 180)
    assert json.loads(lab.run("plan", "--format", "json", "--limit", DEVICE))[DEVICE] == []


def client(lab: Lab, status: dict[str, Any] | None = None) -> dict[str, Any]:
    rows = (status or lab.status(None))["clients"]
    return dict(next(row for row in rows if row["client"] == DEVICE))


def test_what_a_device_cannot_do_is_refused_and_nothing_is_changed(lab: Lab) -> None:
    lab.run("throttle", "pi-33", "--cpus", "1", code=3)
    lab.run("throttle", DEVICE, "--memory", "1q", code=3)
    lab.run("throttle", DEVICE, "--memory", "8m", code=4)
    lab.run("throttle", DEVICE, "--cpus", "500", code=4)


def test_limits_and_rates_change_while_it_runs(lab: Lab, device: Device) -> None:
    started = device.state("client")[1]
    assert max(device.download(), device.upload()) < SLOW, "without a condition the network is fast"
    lab.run("throttle", DEVICE, "--cpus", "0.3", "--memory", "500m")
    lab.run("shape", DEVICE, "--rate", f"{RATE / 1e6:g}mbit")
    slow = device.download(), device.upload()
    print(f"{PAYLOAD} bytes at {RATE:g} bit/s took {slow[0]:.2f} s down, {slow[1]:.2f} s up")
    assert all(SLOW < seconds < 10 * SLOW for seconds in slow), slow
    began = time.monotonic()
    assert len(device.ssh("head", "-c", str(10 * PAYLOAD), "/dev/zero")) == 10 * PAYLOAD
    assert time.monotonic() - began < 10 * SLOW, "SSH is not slowed"

    status = lab.status()
    row = client(lab, status)
    assert (row["cpus"], row["memory"]) == (0.3, 500 * 2**20)
    assert device.state("client")[1] == started
    said = {each["condition"].removeprefix(f"{DEVICE} ") for each in status["conditions"]}
    assert said == {"throttled to 0.3 cpus, 500m of memory", "network shaped to 4 mbit up, 4 mbit down"}
    metrics = lab.on(DEVICE, "cat", f"/opt/fltestbed/{lab.name}/textfile/conditions.prom")
    assert f'fltestbed_condition{{kind="throttle",client="{DEVICE}"}} 1' in metrics
    reasons = [each["name"] for each in json.loads(lab.run("plan", "--format", "json", "--limit", DEVICE))[DEVICE]]
    assert any(text.startswith(f"{DEVICE} throttled to 0.3 cpus") for text in reasons)
    lab.run("restore")
    assert device.state("client")[1] == started
    assert max(device.download(), device.upload()) < SLOW


def test_delay_is_put_in_force_or_refused_for_want_of_netem(lab: Lab, device: Device) -> None:
    probe = "ip link add probe type ifb && tc qdisc add dev probe root netem delay 1ms; code=$?; ip link del probe"
    has_netem = "ok" in lab.on(DEVICE, "sh", "-c", f"{probe}; [ $code = 0 ] && echo ok", code=None)
    before = device.traces()
    lab.run("shape", DEVICE, "--rate", "5mbit", "--delay", "80ms", "--loss", "1%", code=0 if has_netem else 4)
    assert (device.traces() == before) != has_netem
    lab.run("restore", DEVICE)


def test_a_device_that_is_cut_off_or_killed_stays_so_until_it_rejoins(lab: Lab, device: Device) -> None:
    lab.run("partition", DEVICE)
    assert not device.reaches_server()
    assert device.answers()
    wait_for("the server to miss the device", lambda: client(lab)["supernode"] != "online", 240)
    assert device.state("supernode")[0] == "running"

    lab.run("kill", DEVICE)
    lab.run("shape", DEVICE, "--rate", "1mbit")
    assert [device.state(service)[0] for service in ("supernode", "client")] == ["exited"] * 2
    lab.run("reboot", DEVICE)
    up = ["docker", "exec", f"{lab.name}-{DEVICE}", "sh", "-c", "systemctl is-active docker && ! tc qdisc | grep fed:"]
    wait_for("the reboot", lambda: subprocess.run(up, capture_output=True, check=False).returncode == 0, 240)
    wait_for("its SSH", device.answers, 60)
    status = lab.status(None)
    assert {(each["condition"], each["in_force"]) for each in status["conditions"]} == {
        (f"{DEVICE} killed", True),
        ("cut off from the server", False),
        ("network shaped to 1 mbit up, 1 mbit down", False),
    }
    assert [device.state(service)[0] for service in ("supernode", "client")] == ["exited"] * 2
    lab.run("rejoin", DEVICE)
    lab.run("restore", DEVICE)
    assert [device.state(service)[0] for service in ("supernode", "client")] == ["running"] * 2
    wait_for("the server to have it back", lambda: client(lab)["supernode"] == "online", 240)


def test_a_session_whose_controller_is_killed_puts_everything_back(lab: Lab, device: Device) -> None:
    before = device.traces()
    program = textwrap.dedent(f"""
        import time
        from fltestbed.conditions import Action, Sessions, action
        from fltestbed.inventory import load
        from fltestbed.paths import find_inventory
        with Sessions(load(find_inventory({lab.name!r})), [{DEVICE!r}]) as sessions:
            wanted = [action("throttle", {{"cpus": 0.2}}), action("shape", {{"rate": "2mbit"}})]
            for each in [*wanted, Action("partition"), Action("pause")]:
                outcome = sessions.apply({DEVICE!r}, each)
                print(outcome.ok, round(outcome.ended - outcome.started, 3), outcome.text, flush=True)
            time.sleep(300)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=lab.folder, env=lab.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        said = [process.stdout.readline() for _ in range(4)]
        print(*said)
        assert all(line.startswith("True ") for line in said)
        assert device.traces() != before
        assert not device.reaches_server()
        assert device.answers()
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    wait_for("everything to be put back", lambda: device.traces() == before, 60)
    assert device.reaches_server()
