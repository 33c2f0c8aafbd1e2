"""Two who want the same testbed: real processes, and a server host that is this machine."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fltestbed.errors import HostsUnreachable, Locked
from fltestbed.inventory import Host
from fltestbed.lock import lock
from fltestbed.paths import state_dir

HERE = Host("server", {"ansible_connection": "local"})
GONE = Host("server", {"ansible_host": "127.0.0.1", "ansible_port": 1})
HOLD = """
import sys, time
from fltestbed.inventory import Host
from fltestbed.lock import lock
server = Host("server", {"ansible_connection": "local"}) if sys.argv[2:] else None
with lock(sys.argv[1], server):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a testbed that no other test has."""
    monkeypatch.chdir(tmp_path)
    return f"lab-{os.getpid()}-{tmp_path.name}"[:60]


@pytest.fixture
def elsewhere(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """Hold the lock on the server host alone: the work of somebody with another working directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, name, "with server"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def get(name: str, server: Host | None = HERE, seconds: float = 20) -> list[str]:
    """Take the lock, waiting for one that is on its way out; return what was said."""
    said: list[str] = []
    until = time.monotonic() + seconds
    while True:
        try:
            with lock(name, server, said.append):
                return said
        except Locked:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def test_a_second_one_is_told_who_holds_the_lock_since_when(name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, name], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(Locked) as caught, lock(name):
            pass
        holder.kill()
    assert re.search(
        rf"process {holder.pid} of \S+@\S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d .*: -c", str(caught.value)
    )
    assert stat.S_IMODE(state_dir(name).stat().st_mode) == 0o700


def test_testbeds_have_locks_of_their_own(name: str) -> None:
    with lock(name), lock(f"{name}-2"):
        pass


def test_the_lock_of_a_killed_process_is_free_and_that_is_said(name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, name], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        holder.kill()
    (said,) = get(name, server=None)
    assert f"process {holder.pid} " in said and "was killed" in said
    assert get(name, server=None) == []


def test_another_working_directory_is_refused_by_the_server(name: str, elsewhere: "subprocess.Popen[str]") -> None:
    with pytest.raises(Locked) as caught, lock(name, HERE):
        pass
    assert "on server" in caught.value.message and f"process {elsewhere.pid} of " in caught.value.message
    get(f"{name}-2")
    elsewhere.send_signal(signal.SIGKILL)
    assert get(name) == []


def test_the_lock_on_the_server_ends_when_its_holder_is_silent(name: str, tmp_path: Path) -> None:
    """A machine that is switched off sends nothing, not even the end of its connection."""
    script = HOLD.replace("lock(sys.argv[1], server)", "lock(sys.argv[1], server, lease=3)")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, name, "with server"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            time.sleep(4)
            with pytest.raises(Locked), lock(name, HERE):
                pass
            holder.send_signal(signal.SIGSTOP)
            assert get(name) == []
        finally:
            holder.kill()


def test_a_server_that_does_not_answer_stops_nobody(name: str) -> None:
    (said,) = get(name, GONE)
    assert "server does not answer" in said


def test_without_ssh_here_there_is_no_lock_and_none_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(HostsUnreachable, match="no program ssh"):
        patch.setenv("PATH", str(tmp_path))
        with lock(name, GONE):
            raise AssertionError("it went on")
    assert get(name) == []
