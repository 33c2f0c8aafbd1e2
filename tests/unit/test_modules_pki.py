"""testbed_pki, with OpenSSL and ssh-keygen as the judges of what it made."""

import datetime
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import load, run
from cryptography.hazmat.primitives import serialization

from fltestbed.certificates import certificates, due, readmit, require_admitted, revoke, revoked
from fltestbed.errors import DiskError, InventoryError

NAMES = ["superlink", "localhost", "127.0.0.1", "192.0.2.10"]
pki = load("modules", "testbed_pki")


def make(folder: Path, *, check: bool = False, **changes: Any) -> dict[str, Any]:
    params = {"path": str(folder), "testbed": "lab", "server_names": NAMES, "clients": ["pi-1", "laptop-1"]}
    return run(pki, check=check, **(params | changes))


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"FAILED {done.stdout}{done.stderr}"


def verifies(folder: Path, *arguments: str) -> bool:
    said = openssl(
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        folder / "ca.crt",
        *arguments,
        folder / "server.crt",
    )
    return said.strip().endswith("OK")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "pki"
    answer = make(folder)
    assert answer["changed"]
    assert set(answer["made"]) == set(contents(folder))
    return folder


def test_private_files_are_private(made: Path) -> None:
    public = {"ca.crt", "server.crt", "nodes/pi-1.pub", "nodes/laptop-1.pub"}
    for name in contents(made):
        wanted = 0o644 if name in public else 0o600
        assert stat.S_IMODE((made / name).stat().st_mode) == wanted, name
    for folder in (made, made / "nodes"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_chain_holds_for_every_name_and_no_other(made: Path) -> None:
    for name in ("superlink", "localhost"):
        assert verifies(made, "-verify_hostname", name)
    for address in ("127.0.0.1", "192.0.2.10"):
        assert verifies(made, "-verify_ip", address)
    assert not verifies(made, "-verify_hostname", "elsewhere")
    assert not verifies(made, "-verify_ip", "192.0.2.11")


def test_the_certificate_belongs_to_the_key(made: Path) -> None:
    for name in ("ca", "server"):
        of_key = openssl("pkey", "-in", made / f"{name}.key", "-pubout")
        assert of_key == openssl("x509", "-in", made / f"{name}.crt", "-noout", "-pubkey")
        assert "BEGIN PUBLIC KEY" in of_key


def test_another_authority_does_not_verify(made: Path, tmp_path: Path) -> None:
    make(tmp_path / "pki")
    assert "FAILED" in openssl("verify", "-CAfile", tmp_path / "pki/ca.crt", made / "server.crt")


def test_node_keys_are_pairs_of_a_kind_that_flower_takes(made: Path) -> None:
    for client in ("pi-1", "laptop-1"):
        derived = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(made / "nodes" / client)], capture_output=True, text=True, check=True
        )
        assert derived.stdout.split()[:2] == (made / "nodes" / f"{client}.pub").read_text().split()[:2]
        assert derived.stdout.startswith("ecdsa-sha2-nistp384 ")
    assert (made / "nodes/pi-1").read_bytes() != (made / "nodes/laptop-1").read_bytes()


def test_a_second_time_makes_nothing(made: Path) -> None:
    before = contents(made)
    answer = make(made, server_names=NAMES[::-1])
    assert (answer["changed"], answer["made"]) == (False, [])
    assert contents(made) == before


def test_check_mode_leaves_nothing(tmp_path: Path) -> None:
    answer = make(tmp_path / "pki", check=True)
    assert answer["changed"] and "server.crt" in answer["made"]
    assert not (tmp_path / "pki").exists()


def test_changed_names_make_the_certificate_anew_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    answer = make(tmp_path, server_names=[*NAMES, "new.example"])
    assert answer["made"] == ["server.crt"]
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"server.crt"}
    assert verifies(tmp_path, "-verify_hostname", "new.example")


def test_a_new_client_gets_a_key_and_the_others_keep_theirs(tmp_path: Path) -> None:
    make(tmp_path, clients=["pi-1"])
    before = contents(tmp_path)
    assert make(tmp_path, clients=["pi-1", "pi-2"])["made"] == ["nodes/pi-2", "nodes/pi-2.pub"]
    assert before.items() <= contents(tmp_path).items()


def test_a_certificate_that_ends_soon_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    later = pki.now() + datetime.timedelta(days=825 - 30)
    monkeypatch.setattr(pki, "now", lambda: later - datetime.timedelta(hours=1))
    assert make(tmp_path)["made"] == []
    monkeypatch.setattr(pki, "now", lambda: later + datetime.timedelta(hours=1))
    answer = make(tmp_path)
    assert answer["made"] == ["server.crt"]
    assert datetime.datetime.fromisoformat(answer["valid_until"]) > later + datetime.timedelta(days=700)


def test_a_renewed_authority_and_an_old_one_vouch_for_each_others_server(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make(old, ca_days=20, server_days=25, renew_days=5)
    assert due(old) and not due(old, renew_days=5)
    assert [(each.name, each.days_left) for each in certificates(old)] == [("authority", 19), ("server", 19)]
    shutil.copytree(old, new)
    before = contents(new)
    assert make(new)["made"] == ["ca.crt", "server.crt"]
    after = contents(new)
    assert {name for name in after if after[name] != before[name]} == {"ca.crt", "server.crt"}
    assert not due(new)
    assert [each.days_left for each in certificates(new)] == [3649, 824]
    for authority, server in ((old, new), (new, old), (new, new)):
        said = openssl("verify", "-CAfile", authority / "ca.crt", server / "server.crt")
        assert said.strip().endswith("OK"), said


def test_a_certificate_that_would_always_be_due_is_refused(tmp_path: Path) -> None:
    answer = make(tmp_path, server_days=10)
    assert answer["failed"] and "certificates_renew_days" in answer["msg"]
    assert contents(tmp_path) == {}


def test_a_revoked_client_gets_no_key_until_it_is_let_in_again(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    revoke(tmp_path, ["pi-1"])
    assert revoked(tmp_path) == {"pi-1"}
    assert sorted(path.name for path in (tmp_path / "nodes").iterdir()) == ["laptop-1", "laptop-1.pub"]
    answer = make(tmp_path)
    assert answer["failed"] and "revoke --undo pi-1" in answer["msg"]
    with pytest.raises(InventoryError, match="pi-1"):
        require_admitted(tmp_path, ["laptop-1", "pi-1"])
    require_admitted(tmp_path, ["laptop-1"])
    assert make(tmp_path, clients=["laptop-1"])["made"] == []
    readmit(tmp_path, ["pi-1"])
    assert make(tmp_path)["made"] == ["nodes/pi-1", "nodes/pi-1.pub"]
    assert (tmp_path / "nodes/pi-1.pub").read_bytes() != before["nodes/pi-1.pub"]


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "server.crt"])
def test_a_damaged_file_is_an_error_and_is_not_replaced(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / name).write_bytes(b"-----BEGIN NONSENSE-----\n")
    before = contents(tmp_path)
    answer = make(tmp_path, server_names=[*NAMES, "new.example"])
    assert answer["failed"]
    assert str(tmp_path) in answer["msg"] and "backup" in answer["msg"]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
def test_a_damaged_certificate_is_named_and_made_anew_once_it_is_removed(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    (tmp_path / name).write_bytes(before[name][:100])
    with pytest.raises(DiskError) as caught:
        certificates(tmp_path)
    assert str(tmp_path / name) in caught.value.message
    assert "remove it, and the next fltestbed up makes it anew" in caught.value.hint
    assert due(tmp_path)
    (tmp_path / name).unlink()
    assert due(tmp_path)
    assert make(tmp_path)["made"] == [name]
    after = contents(tmp_path)
    assert {each for each in after if after[each] != before[each]} == {name}
    assert verifies(tmp_path)


def test_no_secret_is_in_the_answer(tmp_path: Path) -> None:
    answer = make(tmp_path)
    for name in ("ca.key", "server.key", "nodes/pi-1"):
        secret = (tmp_path / name).read_text().splitlines()[2]
        assert len(secret) > 20 and secret not in answer["printed"]
    assert (tmp_path / "superexec.secret").read_text() not in answer["printed"]
    assert len((tmp_path / "superexec.secret").read_text()) >= 48
    assert serialization.load_pem_private_key((tmp_path / "server.key").read_bytes(), None).key_size == 384  # type: ignore[union-attr]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_key_is_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "ca.key").chmod(0)
    assert make(tmp_path, server_names=["other"])["failed"]


def test_exporters_know_prometheus_by_its_certificate_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    make(folder, exporters={"pi-1": ["pi-1", "192.0.2.21"]})

    def holds(name: str, purpose: str, *arguments: str) -> bool:
        checked = ["-purpose", purpose, "-CAfile", folder / "ca.crt", *arguments, folder / f"{name}.crt"]
        return openssl("verify", "-x509_strict", *checked).strip().endswith("OK")

    assert holds("prometheus", "sslclient") and not holds("prometheus", "sslserver")
    assert holds("exporters/pi-1", "sslserver", "-verify_ip", "192.0.2.21")
    assert not holds("exporters/pi-1", "sslclient") and not holds("server", "sslclient")
    user, _, password = (folder / "prometheus.passwords").read_text().strip().partition(":{PLAIN}")
    assert user == "fltestbed" and len(password) >= 24
    before = contents(folder)
    assert not make(folder, exporters={"pi-1": ["pi-1", "192.0.2.21"]})["changed"]
    assert set(make(folder, exporters={"pi-1": ["pi-1"], "pi-2": ["pi-2"]})["made"]) == {
        "exporters/pi-1.crt",
        "exporters/pi-2.key",
        "exporters/pi-2.crt",
    }
    assert contents(folder)["exporters/pi-1.key"] == before["exporters/pi-1.key"]
