"""One at a time: who changes a testbed holds its lock, in the working directory and on the testbed's server host."""

import contextlib
import fcntl
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from os import getpid
from pathlib import Path
from typing import IO

from fltestbed.errors import Locked
from fltestbed.inventory import Host
from fltestbed.paths import state_dir
from fltestbed.remote import command, me

_LEASE = 30  # s without a sign of life after which the server host frees the lock
_ANSWER = 8.0  # s that the server host gets to say whether it has the lock for us
_HINT = "wait until it is done, or stop it with Ctrl-C there; the lock goes when that process ends"

# The lock on the server host is a name in the kernel's table of sockets: it leaves no file, needs no root, and goes
# with the process that holds it. That one ends with its connection, or when it has heard nothing for the lease's time.
_HOLD = """
import os, select, socket, sys, time
name, who, lease = "\\0fltestbed/" + sys.argv[1], sys.argv[2], float(sys.argv[3])
door = socket.socket(socket.AF_UNIX)
try:
    door.bind(name)
except OSError:
    asked = socket.socket(socket.AF_UNIX)
    asked.settimeout(5)
    try:
        asked.connect(name)
        sys.exit(print("held", asked.makefile().read()))
    except OSError as error:
        sys.exit(print("held", f"its holder does not answer ({error})"))
door.listen()
print("free", flush=True)
end = time.monotonic() + lease
while (left := end - time.monotonic()) > 0:
    ready = select.select([0, door], [], [], left)[0]
    if door in ready:
        with door.accept()[0] as asking:
            asking.sendall(who.encode())
    if 0 in ready:
        if not os.read(0, 4096):
            break
        end = time.monotonic() + lease
"""


def whoami() -> str:
    """Return who runs this, for others to read: process, user and machine, since when, command."""
    called = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    now = datetime.now().astimezone()
    return f"process {getpid()} of {me()}@{socket.gethostname()}, since {now:%F %T %z}: {called}"


@contextlib.contextmanager
def lock(
    testbed: str, server: Host | None = None, say: Callable[[str], None] = lambda line: None, lease: float = _LEASE
) -> Iterator[None]:
    """Keep every other fltestbed from changing a testbed meanwhile: of this folder, and with a server, of any machine.

    A lock goes with the process that holds it, however that ends; on the server host also `lease` seconds after the
    holder's machine was last heard of. Where the server does not answer, `say` tells so and the work goes on.

    Raises Locked, with who holds it since when, when one is at it, and HostsUnreachable where there is no ssh here.
    """
    folder = state_dir(testbed)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignored = folder.parent / ".gitignore"  # it holds keys
    if not ignored.exists() or not ignored.stat().st_size:
        ignored.write_text("*\n", encoding="ascii")
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        file.seek(0)
        holder = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"another fltestbed is changing the testbed {testbed}: {holder}", _HINT) from None
        if holder:
            say(f"the last fltestbed here was killed ({holder}); this one goes on from where the hosts are")
        file.truncate(0)
        file.write(whoami())
        file.flush()
        try:
            with _server_lock(testbed, server, say, lease) if server else contextlib.nullcontext():
                yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _server_lock(testbed: str, server: Host, say: Callable[[str], None], lease: float) -> Iterator[None]:
    ended = threading.Event()
    argv = command(server, ["python3", "-c", _HOLD, testbed, whoami(), str(lease)], as_root=False)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as holder:
        assert holder.stdin and holder.stdout  # noqa: S101 for mypy
        try:
            ready = select.select([holder.stdout], [], [], _ANSWER)[0]
            answer = holder.stdout.readline().decode(errors="replace").strip() if ready else ""
            if answer.startswith("held"):
                who = answer.removeprefix("held").strip()
                raise Locked(f"another fltestbed is changing the testbed {testbed} on {server.name}: {who}", _HINT)
            if answer != "free":
                say(f"{server.name} does not answer; going on without the lock there against other machines")
            threading.Thread(target=_keep, args=(holder.stdin, ended, lease / 6), daemon=True).start()
            yield
        finally:
            ended.set()
            holder.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                holder.wait(1)
            holder.kill()


def _keep(connection: IO[bytes], ended: threading.Event, interval: float) -> None:
    """Give a sign of life at intervals, in s, until the end or until the connection breaks."""
    with contextlib.suppress(OSError, ValueError):
        while not ended.wait(interval):
            connection.write(b".")
            connection.flush()
