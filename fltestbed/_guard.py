"""Runs a command and leaves no process of it behind, whatever becomes of who asked.

`python _guard.py FOLDER PARENT COMMAND...` runs COMMAND below itself, and everything that COMMAND starts stays below
it, also what leaves the session, as Ansible's workers and ssh's shared connections do. On SIGINT, SIGTERM or SIGHUP,
and when the process PARENT dies, COMMAND is interrupted; what has not ended then is killed, at once on a second signal.
FOLDER gets this process's id in the file `guard`, and is removed if PARENT died.

It is a program of its own, and a small one, since nothing in a process can tidy up after its own `kill -9`.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ASKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_GRACE = 1.5  # s that Ansible gets to end its workers
_REST = 0.4  # s that what is left then gets after SIGTERM


class _Guard:
    def __init__(self, command: list[str]) -> None:
        self._child = os.posix_spawnp(command[0], command, os.environ, setsigmask=(), setsigdef=_ASKED)
        self._code: int | None = None

    def follow(self) -> int:
        """Wait until the child has ended, or end it when asked; return its exit code, as a shell gives it."""
        while self._code is None:
            asked = signal.sigwait(_ASKED | {signal.SIGCHLD}) in _ASKED
            self._reap()
            if asked:
                self._end()
        return self._code if self._code >= 0 else 128 - self._code

    def _end(self) -> None:
        """End all that is below this process but for what was detached on purpose, as a Docker engine is."""
        parents = _parents()
        detached = {pid for pid, (parent, name) in parents.items() if parent == os.getpid() and name != "ssh"}
        detached.discard(self._child)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGINT)
        if self._gone(detached, _GRACE):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in _below(detached):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            if self._gone(detached, _REST):
                return

    def _gone(self, detached: set[int], seconds: float) -> bool:
        """Wait until all has ended, no longer than some seconds and until asked once more; return whether it has."""
        until = time.monotonic() + seconds
        while left := _below(detached):
            if time.monotonic() > until or signal.sigtimedwait(_ASKED, 0.02):
                break
            self._reap()
        self._reap()
        return not left

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._child:
                    self._code = os.waitstatus_to_exitcode(ended[1])


def main(folder: Path, parent: int, command: list[str]) -> int:
    """Run the command; return its exit code."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED | {signal.SIGCHLD})
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    code = 128 + signal.SIGTERM
    if os.getppid() == parent:
        (folder / "guard").write_text(str(os.getpid()), encoding="ascii")
        code = _Guard(command).follow()
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _parents() -> dict[int, tuple[int, str]]:
    """Return the parent and the name of every process that has not ended."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            head, _, tail = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")
            state, parent = tail.split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), head.partition("(")[2])
    return found


def _below(detached: set[int]) -> set[int]:
    """Return the processes below this one, without those that were detached and what is below them."""
    children: dict[int, set[int]] = {}
    for pid, (parent, _) in _parents().items():
        children.setdefault(parent, set()).add(pid)
    found: set[int] = set()
    todo = {os.getpid()}
    while todo:
        todo = set().union(*(children.get(pid, set()) for pid in todo)) - detached - found
        found |= todo
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
