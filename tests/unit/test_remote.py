"""Commands on hosts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fltestbed.errors import HostsUnreachable
from fltestbed.inventory import Host
from fltestbed.lock import whoami
from fltestbed.remote import command, stream, tunnel

HERE = Host("server", {"ansible_connection": "local", "ansible_become": False})


def test_the_inventory_says_how_a_host_is_reached() -> None:
    host = Host(
        "pi-1",
        {
            "ansible_host": "192.0.2.21",
            "ansible_port": 2222,
            "ansible_user": "pi",
            "ansible_ssh_private_key_file": "/keys/id",
            "ansible_ssh_common_args": '-o UserKnownHostsFile="/a b/known" -J gate',
            "ansible_ssh_extra_args": "-o Compression=yes",
            "ansible_become": True,
        },
    )
    argv = command(host, ["docker", "compose", "logs", "a b; id"])
    assert argv[:7] == ["ssh", "-o", "UserKnownHostsFile=/a b/known", "-J", "gate", "-o", "Compression=yes"]
    assert argv[-9:] == [
        *["-p", "2222", "-l", "pi", "-i", "/keys/id"],
        *["--", "192.0.2.21", "sudo -n docker compose logs 'a b; id'"],
    ]
    assert {"BatchMode=yes", "ServerAliveInterval=5", "ServerAliveCountMax=2", "ConnectTimeout=10"} < set(argv)


def test_a_host_without_an_address_is_reached_by_its_name() -> None:
    assert command(Host("pi-1", {"ansible_user": "root"}), ["id"])[-2:] == ["pi-1", "id"]


@pytest.mark.parametrize(
    ("variables", "remote"),
    [
        ({"ansible_user": "pi"}, "sudo -n id"),
        ({"ansible_user": "root"}, "id"),
        ({"ansible_user": "pi", "ansible_become": False}, "id"),
    ],
)
def test_commands_run_as_root_as_the_playbooks_do(variables: dict[str, object], remote: str) -> None:
    assert command(Host("pi-1", variables), ["id"])[-1] == remote


@pytest.mark.parametrize(
    ("variables", "checks"),
    [
        ({}, True),
        ({"ansible_host_key_checking": True}, True),
        ({"ansible_host_key_checking": False}, False),
        ({"ansible_host_key_checking": "no"}, False),
        ({"ansible_ssh_host_key_checking": False}, False),
        ({"ansible_host_key_checking": False, "ansible_ssh_host_key_checking": True}, True),
    ],
)
def test_host_keys_are_checked_unless_the_inventory_says_no(variables: dict[str, object], checks: bool) -> None:
    more = {"ansible_ssh_args": "-F none", "ansible_ssh_common_args": "-o StrictHostKeyChecking=accept-new"}
    argv = command(Host("pi-1", variables | more), ["id"])
    off = [] if checks else ["-o", "StrictHostKeyChecking=no"]
    assert argv[: 5 + len(off)] == ["ssh", "-F", "none", *off, "-o", "StrictHostKeyChecking=accept-new"]


def test_a_machine_without_ssh_is_told_which_package_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for start in (lambda host: command(host, ["id"]), lambda host: tunnel(host, 1, 2)):
        with pytest.raises(HostsUnreachable, match="pi-1 cannot be reached: this machine has no program ssh") as caught:
            start(Host("pi-1"))
        assert "openssh-client" in caught.value.hint
    assert command(HERE, ["id"]) == ["id"]


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert f" of uid {os.getuid()}@" in whoami()
    argv = command(Host("pi-1", {"ansible_become": "no"}), ["id"])
    assert argv[-3:] == ["--", "pi-1", "id"] and "-l" not in argv
    assert command(HERE, ["id"]) == ["id"]


def test_a_followed_command_ends_with_its_connection() -> None:
    argv = command(Host("pi-1", {"ansible_user": "pi"}), ["docker", "logs"], follow=True)
    assert argv[-4:] == ["-tt", "--", "pi-1", "stty -opost && exec sudo -n docker logs"]


def test_no_shell_stands_between(tmp_path: Path) -> None:
    file = tmp_path / "out"
    assert stream(HERE, [sys.executable, "-c", f"open({str(file)!r}, 'w').write('$HOME; `id`')"]) == 0
    assert file.read_text() == "$HOME; `id`"


def test_a_log_has_colours_in_a_terminal_alone() -> None:
    program = (
        "from fltestbed.inventory import Host; from fltestbed.remote import stream; "
        "stream(Host('server', {'ansible_connection': 'local', 'ansible_become': False}), "
        "['printf', r'\\033[92mINFO\\033[0m: one\\ntwo'])"
    )
    coloured, plain = b"\x1b[92mINFO\x1b[0m: one", b"INFO: one"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == plain + b"\ntwo"
    leader, follower = os.openpty()
    subprocess.run([sys.executable, "-c", program], stdout=follower, check=True)
    assert os.read(leader, 1024).startswith(coloured)


def test_who_reads_a_log_may_stop_early() -> None:
    program = (
        "import sys; from fltestbed.inventory import Host; from fltestbed.remote import stream; "
        "sys.exit(stream(Host('server', {'ansible_connection': 'local', 'ansible_become': False}), "
        "['seq', '1', '1000000'], follow=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_the_exit_code_is_the_commands() -> None:
    assert stream(HERE, ["sh", "-c", "exit 7"]) == 7


def test_a_host_that_refuses_is_ssh_that_failed() -> None:
    assert stream(Host("pi-1", {"ansible_host": "127.0.0.1", "ansible_port": 1}), ["true"]) == 255


def test_ctrl_c_ends_a_followed_command_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from fltestbed.inventory import Host; from fltestbed.remote import stream; "
        "sys.exit(stream(Host('server', {'ansible_connection': 'local', 'ansible_become': False}), "
        f"['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'], follow=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(3) == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    raise AssertionError("the command still runs")
