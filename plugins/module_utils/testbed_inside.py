"""A Python program in a running container, as its user and in its control group: ``docker exec`` sees to both."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time

KILLED = 137  # what docker exec returns of a program that the kernel killed


class Inside:
    """The program, whose output is read as it comes. It is to end with its standard input."""

    def __init__(self, container, *arguments):
        self._process = subprocess.Popen(
            ["docker", "exec", "-i", container, "python", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._read = b""
        self._said = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def tell(self, content):
        """Write to the program's standard input."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def hear(self, seconds, meanwhile=None, interval=0.05):
        """Return the next line, decoded from JSON; None: it has ended. Calls `meanwhile` at intervals.

        Raises TimeoutError, and ValueError for what is no JSON.
        """
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            if time.monotonic() > until:
                raise TimeoutError(f"a program in the container said nothing for {seconds} s")
            if select.select([self._process.stdout], [], [], interval)[0]:
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    return None
                self._read += part
            if meanwhile:
                meanwhile()
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def need(self, seconds):
        """Return the next line, decoded from JSON. Raises ValueError, with what it said, when there is none."""
        said = self.hear(seconds)
        if said is None:
            code, errors = self.end()
            raise ValueError(f"a program in the container ended with {code}: {errors}")
        return said

    def end(self):
        """End the program; return its exit code and what it said on standard error. Once is enough."""
        if self._said is None:
            try:
                _out, said = self._process.communicate(timeout=15)  # which closes its standard input
            except subprocess.TimeoutExpired:
                self._process.kill()
                _out, said = self._process.communicate()
            self._said = said.decode(errors="replace").strip()
        return self._process.returncode, self._said
