"""What guards Ansible: real processes that try to get away."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fltestbed import _guard

# Below the guard: a child, one in a session of its own (as Ansible's workers are), and an orphan called ssh.
COMMAND = """
import os, signal, subprocess, sys, time
from pathlib import Path
if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"], start_new_session=True)
for name in ("ssh", "engine"):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path("/proc/self/comm").write_text(name)
            time.sleep(600)
        os._exit(0)
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
subprocess.run([sys.executable, "-I", "-S", sys.argv[1], sys.argv[2], str(os.getpid()), *sys.argv[3:]])
"""


def marked(marker: str) -> dict[int, str]:
    """Return the names of the processes whose environment holds a marker."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def wait_until(marker: str, what: Callable[[set[str]], bool], seconds: float = 30) -> None:
    """Wait until the names of the marked processes are as they shall be."""
    until = time.monotonic() + seconds
    while not what(set(marked(marker).values())):
        assert time.monotonic() < until, marked(marker)
        time.sleep(0.05)


@pytest.mark.parametrize("temper", ["obedient", "stubborn"])
@pytest.mark.parametrize("how", ["asked", "orphaned"])
def test_nothing_is_left_but_what_was_detached_on_purpose(how: str, temper: str, tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    marker = f"GUARDED={tmp_path}"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, _guard.__file__, str(folder), sys.executable, "-c", COMMAND, temper],
        env=dict([marker.split("=")]) | {"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        try:
            assert parent.stdout and parent.stdout.readline() == "ready\n"
            wait_until(marker, lambda names: names >= {"sleep", "ssh", "engine"})
            if how == "asked":
                os.kill(int((folder / "guard").read_text()), signal.SIGTERM)
            else:
                parent.kill()
            wait_until(marker, lambda names: names == {"engine"})
            parent.wait(10)
            assert folder.exists() == (how == "asked"), "what the runner wrote goes with the last who knows of it"
        finally:
            for pid in marked(marker):
                os.kill(pid, signal.SIGKILL)


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    for script, code in (("raise SystemExit(4)", 4), ("import os; os.kill(os.getpid(), 9)", 137)):
        command = [sys.executable, "-I", "-S", _guard.__file__, str(tmp_path), str(os.getpid())]
        assert subprocess.run([*command, sys.executable, "-c", script], check=False).returncode == code


def test_signals_that_a_background_shell_ignores_reach_the_command(tmp_path: Path) -> None:
    script = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    command = [sys.executable, "-I", "-S", _guard.__file__, str(tmp_path), str(os.getpid())]
    done = subprocess.run(
        ["sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", *command, sys.executable, "-c", script], check=False
    )
    assert done.returncode == 0
