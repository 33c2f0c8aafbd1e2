"""The events of a timeline, written where they are looked for."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fltestbed.inventory import Testbed
from fltestbed.remote import command

if TYPE_CHECKING:
    from fltestbed.timeline.schedule import Step


class Ledger:
    """Writes into a run's folder here and beside the one on the server host, and says each event."""

    def __init__(self, steps: Sequence["Step"], testbed: Testbed, folder: Path, say: Callable[[str], None]) -> None:
        self._steps = steps
        self._folder = folder
        self._say = say
        self._copy = command(testbed.server, ["tee", "-a", f"{testbed.root}/submitted/{folder.name}.conditions"])
        self._server: subprocess.Popen[bytes] | None = None
        self._writing = threading.Lock()

    def begin(self) -> None:
        """Write the schedule."""
        if self._steps:
            self._folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(step.row()) + "\n" for step in self._steps]
            (self._folder / "timeline.jsonl").write_text("".join(lines), encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Write an event. The server host has it as long as it can be reached."""
        text = json.dumps(row, ensure_ascii=False) + "\n"
        with self._writing:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(text)
            if self._server is None:
                self._server = subprocess.Popen(
                    self._copy,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            assert self._server.stdin  # noqa: S101 for mypy
            with contextlib.suppress(OSError):
                self._server.stdin.write(text.encode())
                self._server.stdin.flush()
            self._say(line(row))

    def close(self) -> None:
        """End the connection to the server host."""
        if self._server:
            assert self._server.stdin  # noqa: S101 for mypy
            with contextlib.suppress(OSError):
                self._server.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(2)
            self._server.kill()


def line(row: Mapping[str, Any]) -> str:
    """Return an event as a person reads it."""
    late = row["error_seconds"]
    how = "" if late is None else f"  {late * 1000:.0f} ms late" if late < 1 else f"  {late:.1f} s late"
    return f"{row['when']}: {row['device']}  {row['text']}{how}"
