"""Keys and certificates on a testbed that runs: where they are not to be found, renewed, revoked."""

import base64
import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from .lab import DEVICES, Lab, wait_for

HOSTS = ("server", *DEVICES)
SHORT = {"certificates_ca_days": 10, "certificates_server_days": 9, "certificates_renew_days": 5}
# All that `ps` and a container's record could give away, on a host or here.
SAMPLE = """
import glob
for file in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(file, "rb").read().replace(b"\\0", b" ").decode(errors="replace"))
    except OSError:
        pass
"""


def pki(lab: Lab) -> Path:
    return lab.folder / ".fltestbed" / "e2e" / "pki"


def private_files(lab: Lab) -> list[Path]:
    """Return every private file that fltestbed made for the testbed."""
    ssh = lab.folder / ".fltestbed" / "e2e" / "ssh" / "id_ed25519"
    nodes = [pki(lab) / "nodes" / device for device in DEVICES]
    return [*pki(lab).glob("*.key"), pki(lab) / "superexec.secret", ssh, *nodes]


def traces(file: Path) -> set[str]:
    """Return what a private file's secret looks like wherever it is written: as in the file itself, and in hex."""
    text = file.read_text()
    if "PRIVATE KEY" not in text:
        return {text.strip()}
    load = (
        serialization.load_ssh_private_key if "OPENSSH" in text.splitlines()[0] else serialization.load_pem_private_key
    )
    key: Any = load(text.encode(), None)
    if hasattr(key, "private_numbers"):
        number = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")
    else:
        number = key.private_bytes_raw()
    lines = text.strip().splitlines()[1:-1]
    width = len(lines[0])
    at = base64.b64decode("".join(lines)).find(number)
    assert at >= 0, f"{file} does not hold its own private number"
    first, last = -(-at * 8 // 6), (at + len(number)) * 8 // 6  # the characters that say nothing but the number
    found = {number.hex()}
    for row, line in enumerate(lines):
        part = line[max(first - row * width, 0) : max(last - row * width, 0)]
        if len(part) >= 12:
            found.add(part)
    assert len(found) > 1
    return found


class Watch:
    """Samples command lines, environments and containers' records, here and on every host, until it is left."""

    def __init__(self, lab: Lab) -> None:
        self.said: dict[str, set[str]] = {host: set() for host in ("controller", *HOSTS)}
        self._lab = lab
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._look, args=(host,)) for host in self.said]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)

    def _look(self, host: str) -> None:
        while not self._ended.wait(2):
            if host == "controller":
                done = subprocess.run(["python3", "-c", SAMPLE], capture_output=True, text=True, check=False)
                self.said[host].update(done.stdout.splitlines())
            else:
                self.said[host].update(self._lab.on(host, "python3", "-c", SAMPLE, code=None).splitlines())
                ids = self._lab.on(host, "docker", "ps", "-aq", code=None).split()
                self.said[host].update(self._lab.on(host, "docker", "inspect", *ids, code=None).splitlines())


def written_here(lab: Lab) -> Iterator[Path]:
    """Yield every file that commands write on this machine, except the keys' own."""
    own = (pki(lab), lab.folder / ".fltestbed" / "e2e" / "ssh")
    for place in (lab.folder, Path.home() / ".ansible" / "tmp"):
        for file in place.rglob("*"):
            if file.is_file() and not any(folder in file.parents for folder in own):
                yield file


def clients(lab: Lab) -> dict[str, str]:
    """Return each client's SuperNode as `status` has it, whatever else is not in order."""
    command = lab.command("status", "--format", "json")
    done = subprocess.run(
        command, cwd=lab.folder, env=lab.environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.startswith("{"), done.stderr
    return {row["client"]: row["supernode"] for row in json.loads(done.stdout)["clients"]}


def all_online(lab: Lab) -> bool:
    return set(clients(lab).values()) == {"online"}


def days_left(lab: Lab) -> dict[str, int]:
    return {row["certificate"]: row["days_left"] for row in lab.status()["certificates"]}


def served(lab: Lab) -> str:
    """Return the certificate that the server shows to the devices."""
    ask = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], 9092)))"
    return lab.on("pi-3", "python3", "-c", ask, "172.29.7.10").strip()


def set_variables(lab: Lab, variables: dict[str, int]) -> None:
    (lab.inventory / "group_vars" / "all.yml").write_text(yaml.safe_dump(variables))


def test_short_certificates_are_renewed_and_no_secret_shows(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `up` that has every secret to deliver is watched from all sides; the next one renews the certificates."""
    temporary = lab.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    keys = {file: file.read_bytes() for file in private_files(lab) if file.parent == pki(lab)}
    variables = lab.inventory / "group_vars" / "all.yml"
    (pki(lab) / "superexec.secret").write_text("canary-" * 4 + os.urandom(24).hex())
    for name in ("ca.crt", "server.crt"):
        (pki(lab) / name).unlink()
    try:
        set_variables(lab, SHORT)
        with Watch(lab) as watch:
            lab.run("up")
        assert days_left(lab) == {"authority": 9, "server": 8, "monitoring": 824}
        first = served(lab)
        assert first == (pki(lab) / "server.crt").read_text().strip()
    finally:
        variables.unlink()
    before = lab.started()
    lab.run("up")
    assert days_left(lab) == {"authority": 3649, "server": 824, "monitoring": 824}
    assert served(lab) not in (first, "") and served(lab) == (pki(lab) / "server.crt").read_text().strip()
    after = lab.started()
    restarted = {service for (_host, service), at in after.items() if at != before[_host, service]}
    assert {"superlink", "proxy", *(f"supernode-{device}" for device in DEVICES)} <= restarted
    assert all(file.read_bytes() == content for file, content in keys.items() if file.suffix == ".key")
    wait_for("every SuperNode online", lambda: all_online(lab))

    secrets = {trace: file.name for file in private_files(lab) for trace in traces(file)}
    for host, lines in watch.said.items():
        text = "\n".join(lines)
        assert len(text) > 1000, f"{host} was not watched"
        assert {name for trace, name in secrets.items() if trace in text} == set(), host
    for file in written_here(lab):
        with contextlib.suppress(FileNotFoundError):
            text = file.read_bytes().decode(errors="replace")
            assert {name for trace, name in secrets.items() if trace in text} == set(), file
    assert list(temporary.glob("fltestbed-*")) == []


def test_private_files_are_private_and_out_of_gits_way(lab: Lab) -> None:
    for file in private_files(lab):
        assert file.stat().st_mode & 0o777 == 0o600, file
    for file in (lab.folder / ".fltestbed" / "e2e" / "hosts").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    subprocess.run(["git", "init", "-q", str(lab.folder)], check=True, timeout=60)
    try:
        said = subprocess.run(
            ["git", "-C", str(lab.folder), "status", "--porcelain", "--untracked-files=all"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert "inventories/" in said and ".fltestbed" not in said
    finally:
        subprocess.run(["rm", "-rf", str(lab.folder / ".git")], check=True, timeout=60)
    for device in HOSTS:
        private = ["find", "/opt/fltestbed", "-name", "key", "-o", "-name", "*.key", "-o", "-name", "*.secret"]
        assert {lab.on(device, "stat", "-c", "%a", path).strip() for path in lab.on(device, *private).split()} == {
            "600"
        }


def test_a_revoked_device_is_refused_until_it_is_let_in_again(lab: Lab) -> None:
    wait_for("every SuperNode online", lambda: all_online(lab))
    old_key = (pki(lab) / "nodes" / "pi-3").read_text()
    supernode = "fltestbed-e2e-supernode-pi-3-1"
    try:
        lab.run("revoke", "pi-3", "--yes")
        assert not (pki(lab) / "nodes" / "pi-3").exists()
        held = json.loads(lab.on("server", "cat", "/opt/fltestbed/e2e/state/nodes.json"))
        assert set(held) == set(DEVICES) - {"pi-3"}
        ask = ["docker", "exec", "fltestbed-e2e-superlink-1", "flwr", "supernode", "ls", "testbed", "--format", "json"]
        nodes = json.loads(lab.on("server", *ask))["nodes"]
        assert [node["status"] for node in nodes].count("unregistered") == len(nodes) - len(held) > 0
        # The device itself still has its key; it is what SuperLink refuses.
        assert lab.on("pi-3", "cat", "/opt/fltestbed/e2e/nodes/pi-3/key") == old_key
        lab.on("pi-3", "docker", "restart", supernode)
        again = ["docker", "inspect", "--format", "{{.RestartCount}}", supernode]
        wait_for("the SuperNode refused, so that it ends and is started again", lambda: int(lab.on("pi-3", *again)) > 0)
        assert clients(lab)["pi-3"] == "revoked"
        process = lab.start("up")
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 3 and "revoke --undo pi-3" in said, said
        assert not (pki(lab) / "nodes" / "pi-3").exists()
    finally:
        lab.run("revoke", "--undo", "pi-3")
        lab.run("up")
    assert (pki(lab) / "nodes" / "pi-3").read_text() != old_key
    wait_for("every SuperNode online", lambda: all_online(lab))


@pytest.mark.parametrize("name", ["nobody", "pi-33"])
def test_nobody_unknown_is_revoked(lab: Lab, name: str) -> None:
    lab.run("revoke", name, "--yes", code=3)
    assert not (pki(lab) / "revoked").exists() or (pki(lab) / "revoked").read_text() == ""
