"""A terminal of its own for a command."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import time

from .lab import Lab


class Terminal:
    """fltestbed on a terminal of its own; what it draws is in `drawn`."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self._mine, theirs = pty.openpty()
        self.resize(30, 120)
        self.process = subprocess.Popen(
            lab.command(*arguments),
            cwd=lab.folder,
            env={**lab.environment(), "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        os.set_blocking(self._mine, False)
        self.drawn = ""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._mine, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Read on until `text` was drawn after what was read before."""
        seen, deadline = len(self.drawn), time.monotonic() + seconds
        while text not in self.drawn[seen:]:
            assert time.monotonic() < deadline and self.process.poll() is None, f"no {text}: {self.drawn[-2000:]}"
            with contextlib.suppress(BlockingIOError):
                self.drawn += os.read(self._mine, 65536).decode(errors="replace")
            time.sleep(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._mine)
