"""Faults, injected into the real testbed: what docs/reference-faults.md promises. They leave the lab as it was."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import CertificateBuilder, load_pem_x509_certificate

from .lab import DEVICES, Lab, rows, wait_for

DEVICE = "pi-4"
SEED = 20
SILENT = 20  # s within which a host that fell silent is named
ANSWER = 3  # s within which Ctrl-C is answered; a machine that runs other tests meanwhile gets more
PATIENCE = 4


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True, timeout=120)


def machine(lab: Lab, device: str) -> str:
    """Return the container that is a virtual device."""
    return f"{lab.inventory.name}-{device}"


def root(lab: Lab) -> str:
    return f"/opt/fltestbed/{lab.inventory.name}"


def container(lab: Lab, service: str) -> str:
    return f"fltestbed-{lab.inventory.name}-{service}-1"


@contextlib.contextmanager
def frozen(lab: Lab, device: str) -> Iterator[None]:
    """Stop every process of a device; its kernel still takes connections, as that of a device that hangs does."""
    docker("pause", machine(lab, device))
    try:
        yield
    finally:
        docker("unpause", machine(lab, device))


class Watched:
    """fltestbed in the background: what it said and when, and which processes are its own."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self._mark = f"FLTESTBED_TEST={os.getpid()}-{time.monotonic_ns()}".encode()
        name, _, value = self._mark.decode().partition("=")
        self.process = subprocess.Popen(
            lab.command(*arguments),
            cwd=lab.folder,
            env=lab.environment() | {f"XDG_{name}": value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.append((time.monotonic(), line))

    @property
    def said(self) -> str:
        return "".join(line for _, line in self._lines)

    def when(self, pattern: str, seconds: float = 300) -> float:
        """Return when a line first matched; wait for it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for at, line in self._lines:
                if re.search(pattern, line):
                    return at
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.05)
        raise AssertionError(f"nobody said {pattern!r}:\n{self.said}")

    def end(self, seconds: float = 600) -> int:
        code = self.process.wait(seconds)
        self._reader.join(30)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def left(self) -> list[str]:
        """Return the commands of its processes, of ssh's shared connections too."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text().replace("\0", " ")[:200])
        return found

    def none_left(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.left() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.left()


def changes(lab: Lab, *arguments: str) -> str:
    """Run `up`, which has to succeed; return what it changed, as its plain lines say it."""
    watched = Watched(lab, "up", *arguments)
    assert watched.end() == 0, watched.said
    counts = re.findall(r"^(\S+) +\d+ ok +(\d+) changed", watched.said, re.MULTILINE)
    assert counts, watched.said
    return "\n".join(line for line in watched.said.splitlines() if any(int(changed) for _, changed in counts))


def test_a_frozen_device_is_named_and_the_others_finish(lab: Lab) -> None:
    with frozen(lab, DEVICE):
        up = Watched(lab, "up")
        began = time.monotonic()
        named = up.when(f"^{DEVICE}: .*UNREACHABLE") - began
        assert up.end() == 6, up.said
    print(f"named after {named:.1f} s")
    assert named < SILENT * PATIENCE
    assert re.search(rf"error: 1 of \d+ hosts cannot be reached\n  {DEVICE}: ", up.said)
    assert all(f"{host}  " in up.said for host in ("server", "pi-3"))


def break_device(lab: Lab) -> None:
    """Give `up` work on a device: a container and its files are gone."""
    lab.on(DEVICE, "docker", "rm", "--force", container(lab, f"client-{DEVICE}"), code=None)
    lab.on(DEVICE, "rm", "-rf", f"{root(lab)}/compose.yml", f"{root(lab)}/nodes")


def test_a_device_that_freezes_in_a_task_is_named_and_completed_next_time(lab: Lab) -> None:
    break_device(lab)
    up = Watched(lab, "up")
    up.when(f"^{DEVICE}: ")
    with frozen(lab, DEVICE):
        began = time.monotonic()
        named = up.when(f"^{DEVICE}: .*UNREACHABLE") - began
        assert up.end() == 6, up.said
    print(f"named after {named:.1f} s")
    assert named < SILENT * PATIENCE
    lab.run("up")
    assert changes(lab) == ""


def test_a_killed_cli_leaves_no_process_and_a_free_lock(lab: Lab) -> None:
    break_device(lab)
    up = Watched(lab, "up", "--limit", DEVICE)
    up.when(f"^{DEVICE}: ")
    up.process.kill()
    killed = up.process.pid
    up.end()
    assert up.none_left(ANSWER * PATIENCE), up.left()
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"fltestbed-*/guard-{killed}"))  # noqa: S108
    again = Watched(lab, "up", "--limit", DEVICE)
    assert again.end() == 0, again.said
    assert f"was killed (process {killed} of " in again.said
    assert changes(lab, "--limit", DEVICE) == ""


def test_ctrl_c_at_any_point_is_answered_and_the_next_up_converges(lab: Lab) -> None:
    """Ten points over the time that an `up` takes which has work to do, drawn with a seed."""
    break_device(lab)
    began = time.monotonic()
    assert "changed" in changes(lab, "--limit", DEVICE)
    whole = time.monotonic() - began
    draw = random.Random(SEED)  # noqa: S311
    points = sorted(draw.uniform(0.1, whole) for _ in range(10))
    assert points[-1] - points[0] > whole / 2
    answers = []
    for point in points:
        break_device(lab)
        up = Watched(lab, "up", "--limit", DEVICE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.process.wait(point)
        asked = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        code = up.end(120)
        answers.append(time.monotonic() - asked)
        assert code in (130, -signal.SIGINT, 0), f"at {point:.1f} s: {code}\n{up.said}"
        assert code != 130 or "error: stopped as asked" in up.said, up.said
        assert code == 0 or up.none_left(2), f"at {point:.1f} s: {up.left()}"
        assert "Traceback" not in up.said or code == -signal.SIGINT, up.said
    print("answered after", " ".join(f"{answer:.1f}" for answer in answers), "s")
    assert sorted(answers)[len(answers) // 2] < ANSWER * PATIENCE
    lab.run("up", "--limit", DEVICE)
    assert changes(lab, "--limit", DEVICE) == ""


def test_a_second_up_is_refused_with_who_is_at_it(lab: Lab) -> None:
    """The first is frozen with the device it talks to, so that it certainly lasts."""
    with frozen(lab, DEVICE):
        first = Watched(lab, "up", "--limit", DEVICE)
        lock = lab.folder / ".fltestbed" / lab.inventory.name / "lock"
        until = time.monotonic() + 60
        while not (lock.exists() and f"process {first.process.pid} " in lock.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        second = Watched(lab, "up")
        assert second.end() == 8, second.said
        assert re.search(
            rf"process {first.process.pid} of \S+@\S+, since 20\S+ \S+ \S+: fltestbed up --limit {DEVICE}", second.said
        )
        assert first.end() == 6, first.said
    assert changes(lab, "--limit", DEVICE) == ""


def test_a_testbed_of_the_same_name_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    """As one finds it who deploys from another working directory, with other keys."""
    other = Lab(tmp_path, lab.name)
    shutil.copytree(lab.inventory, other.inventory)
    shutil.copytree(lab.folder / ".fltestbed" / lab.name / "ssh", tmp_path / ".fltestbed" / lab.name / "ssh")
    lab.run("throttle", DEVICE, "--cpus", "0.3")
    before = lab.started()
    for arguments, code in ((("up",), 4), (("down", "--yes"), 5)):
        refused = Watched(other, *arguments)
        assert refused.end() == code, refused.said
        assert refused.said.count("deployed with other keys") == len(DEVICES) + 1, refused.said
    check = Watched(other, "check")
    assert check.end() == 4 and "deployed with other keys" in check.said, check.said
    assert lab.started() == before
    assert "throttled" in str(lab.status()["conditions"])
    lab.run("restore")
    assert changes(lab) == ""


def test_a_register_that_was_broken_off_is_mended(lab: Lab) -> None:
    """SuperLink has a node that was not noted, and a client that is gone has none any more."""
    nodes = f"{root(lab)}/state/nodes.json"
    held = json.loads(lab.on("server", "cat", nodes))
    noted = {client: node for client, node in held.items() if client != DEVICE} | {"gone": {"id": "1", "key": "k"}}
    lab.on("server", "sh", "-c", f"cat >{nodes} <<'END'\n{json.dumps(noted)}\nEND")
    lab.run("up")
    wait_for("every SuperNode back", lambda: states(lab) == {"online"})
    assert json.loads(lab.on("server", "cat", nodes)).keys() == held.keys()
    assert changes(lab) == ""


def test_a_device_that_left_the_inventory_comes_back(lab: Lab) -> None:
    """SuperLink takes no key twice, so it needs a new one."""
    hosts = lab.inventory / "hosts.yml"
    right = hosts.read_text()
    without = yaml.safe_load(right)
    del without["testbed"]["children"]["supernodes"]["hosts"][DEVICE]
    hosts.write_text(yaml.safe_dump(without))
    try:
        up = Watched(lab, "up")
        assert up.end() == 0, up.said
        assert f"{DEVICE} is not in the inventory any more" in up.said
    finally:
        hosts.write_text(right)
    lab.run("up")
    wait_for("every SuperNode back", lambda: states(lab) == {"online"})
    assert changes(lab) == ""


def test_a_port_that_another_has_is_said_with_who_has_it(lab: Lab) -> None:
    lab.on("server", "docker", "stop", container(lab, "proxy"))
    docker("exec", "-d", machine(lab, "server"), "python3", "-m", "http.server", "9092")
    try:
        up = Watched(lab, "up", "--limit", "server")
        assert up.end() == 4, up.said
        assert re.search(r"port 9092/tcp is held by python3 \(process \d+\)", up.said), up.said
    finally:
        lab.on("server", "pkill", "-f", "http.server 9092")
    lab.run("up")
    wait_for("every SuperNode back", lambda: states(lab) == {"online"})
    assert changes(lab) == ""


def test_a_registry_that_is_gone_is_said(lab: Lab) -> None:
    lab.on(DEVICE, "docker", "rm", "--force", *lab.on(DEVICE, "docker", "ps", "-aq").split())
    lab.on(DEVICE, "docker", "rmi", "--force", *set(lab.on(DEVICE, "docker", "images", "-q").split()))
    lab.on("server", "docker", "stop", container(lab, "proxy"))
    up = Watched(lab, "up", "--limit", DEVICE)
    assert up.end() == 5, up.said
    assert re.search(r"fltestbed/\S+ cannot be pulled from the server, \S+:5000: .*refused", up.said), up.said
    lab.run("up")
    assert changes(lab) == ""


def test_a_full_disk_on_a_device_is_said(lab: Lab) -> None:
    """A small file system lies where the testbed's tree is, and is full."""
    lab.on(DEVICE, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root(lab))
    try:
        lab.on(DEVICE, "sh", "-c", f"echo '[]' >{root(lab)}/.fltestbed-files.json")
        lab.on(DEVICE, "dd", "if=/dev/zero", f"of={root(lab)}/fill", "bs=4k", code=None)
        up = Watched(lab, "up", "--limit", DEVICE)
        assert up.end() == 4, up.said
        assert f"0 MB are free at {root(lab)}" in up.said
    finally:
        lab.on(DEVICE, "umount", "--lazy", root(lab))
    lab.run("up", "--limit", DEVICE)
    assert changes(lab, "--limit", DEVICE) == ""


def test_a_full_disk_on_the_controller_is_said_and_breaks_nothing(lab: Lab, tmp_path: Path) -> None:
    state = lab.folder / ".fltestbed"
    kept = {path: path.read_bytes() for path in state.rglob("*") if path.is_file() and "logs" not in path.parts}
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
    try:
        subprocess.run(["cp", "-a", str(state), str(lab.folder / "inventories"), str(small)], check=True)
        with contextlib.suppress(OSError):
            (small / "fill").write_bytes(bytes(2**22))
        done = subprocess.run(
            lab.command("up", "--limit", DEVICE),
            cwd=small,
            env=lab.environment() | {"PWD": str(small)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 10, done.stderr
        assert "Traceback" not in done.stderr and f"free at {small}" in done.stderr
        for path, content in kept.items():
            assert (small / ".fltestbed" / path.relative_to(state)).read_bytes() in (content, b""), path
            if {"pki", "ssh", ".gitignore"} & {*path.parts}:
                assert (small / ".fltestbed" / path.relative_to(state)).read_bytes() == content, path
    finally:
        subprocess.run(["umount", str(small)], check=True)


def bring_certificate(lab: Lab, content: bytes) -> None:
    """Put a server certificate in the place of the one in use, and have it used."""
    for service in ("superlink", "proxy"):
        path = f"{root(lab)}/{service}/server.crt"
        subprocess.run(
            ["docker", "exec", "-i", machine(lab, "server"), "sh", "-c", f"cat > {path}"], input=content, check=True
        )
        lab.on("server", "docker", "restart", container(lab, service))


def expired(pki: Path) -> bytes:
    """Return the server's certificate as its authority would have made it three years ago."""
    now = load_pem_x509_certificate((pki / "server.crt").read_bytes())
    builder = CertificateBuilder(
        issuer_name=now.issuer,
        subject_name=now.subject,
        public_key=now.public_key(),
        serial_number=now.serial_number + 1,
        not_valid_before=datetime.now(UTC) - timedelta(days=1000),
        not_valid_after=datetime.now(UTC) - timedelta(days=1),
        extensions=list(now.extensions),
    )
    key = load_pem_private_key((pki / "ca.key").read_bytes(), password=None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def states(lab: Lab) -> set[str]:
    return {row["supernode"] for row in lab.status(code=None)["clients"]}  # `status` exits with 5 as long as one starts


def test_an_expired_certificate_keeps_devices_out_and_the_next_up_mends_it(lab: Lab) -> None:
    pki = lab.folder / ".fltestbed" / lab.inventory.name / "pki"
    old = expired(pki)
    (pki / "server.crt").write_bytes(old)
    bring_certificate(lab, old)
    lab.on(DEVICE, "docker", "restart", container(lab, f"supernode-{DEVICE}"))

    def refused() -> bool:
        return "certificate has expired" in lab.on(
            DEVICE, "bash", "-c", f"docker logs --since 5m {container(lab, f'supernode-{DEVICE}')} 2>&1"
        )

    wait_for("a SuperNode that says why it stays out", refused)
    lab.run("up")
    assert load_pem_x509_certificate((pki / "server.crt").read_bytes()).not_valid_after_utc > datetime.now(UTC)
    wait_for("every SuperNode back", lambda: states(lab) == {"online"})
    assert changes(lab) == ""


def rounds_begun(lab: Lab, device: str, since: str) -> list[int]:
    """Return the rounds in which a device's client said since then that it trains."""
    said = lab.on(device, "docker", "logs", "--since", since, container(lab, f"client-{device}"))
    return [int(number) for number in re.findall(r"^round (\d+): training", said, re.MULTILINE)]


def test_a_run_survives_a_corrupt_shard_a_killed_client_and_an_engine_that_restarts(lab: Lab) -> None:
    """Needs the data of an earlier run on the device; without it there is no shard to corrupt, and it is brought."""
    restarted = "laptop"
    shard = lab.on(restarted, "bash", "-c", f"echo {root(lab)}/data/{restarted}/*.npz").strip()
    lab.on(restarted, "dd", "if=/dev/zero", f"of={shard}", "bs=1k", "count=1", "seek=1", "conv=notrunc")
    since = lab.on(DEVICE, "date", "--utc", "+%FT%TZ").strip()
    run = Watched(lab, "run", "fashion-mnist-cnn", "--set", "rounds=4", "--name", "faults")
    try:
        run.when("^round 1/4")
        lab.on(restarted, "systemctl", "restart", "docker")
        wait_for("the second round's training", lambda: rounds_begun(lab, DEVICE, since)[1:])
        killed = rounds_begun(lab, DEVICE, since)[-1]
        client = container(lab, f"client-{DEVICE}")
        lab.on(DEVICE, "kill", "-9", lab.on(DEVICE, "docker", "inspect", "-f", "{{.State.Pid}}", client).strip())
        code = run.end(900)
    finally:
        run.process.kill()
    assert code == 0, run.said
    clients = rows(lab.latest_run(), "clients.jsonl")
    assert len(rows(lab.latest_run(), "rounds.jsonl")) == 4
    assert all(row["failure"] is None or len(row["failure"]) > 10 for row in clients), "a failure has its reason"
    first = next(row for row in clients if row["device"] == restarted)
    assert first["failure"] is None, "the shard was brought again, and trained on"
    mine = [row for row in clients if row["device"] == DEVICE]
    failed = [row for row in mine if row["failure"]]
    assert failed and failed[0]["round"] == killed, mine
    assert failed[0]["end"] > failed[0]["start"]
    assert mine[-1]["failure"] is None, mine
    for device in (DEVICE, restarted):
        assert set(lab.on(device, "docker", "ps", "--format", "{{.State}}").split()) == {"running"}
    wait_for("every SuperNode back", lambda: states(lab) == {"online"})
