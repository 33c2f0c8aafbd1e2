"""What a playbook is doing, on stderr: one live line a host on a terminal, else a line for each change and failure."""

import sys
from typing import TYPE_CHECKING

from fltestbed.runner import Event, RunResult

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


class Progress:
    """Shows the events of one playbook. With `verbose` Ansible's own output takes the place of the plain lines."""

    def __init__(self, verbose: bool, check: bool = False) -> None:
        self._check = check
        self._verbose = verbose
        self._done: dict[str, int] = {}
        self._changed: dict[str, int] = {}
        self._now: dict[str, str] = {}
        self._waits: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True, markup=False, highlight=False), get_renderable=self._table, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        failed = event.kind in ("failed", "unreachable")
        if event.kind == "start":
            self._done.setdefault(event.host, 0)
            self._now[event.host] = event.task
        elif event.kind in ("ok", "skipped") or failed:
            self._done[event.host] = self._done.get(event.host, 0) + 1
            self._changed[event.host] = self._changed.get(event.host, 0) + event.changed
            self._now[event.host] = f"{event.kind.upper()}: {event.task}" if failed else ""
        elif event.kind == "waiting":
            self._wait(event)
        if self._verbose and event.output:
            self.say(event.output)
        elif not self._live and not self._verbose and (event.changed or failed):
            how = f" {event.kind.upper()}" if failed else " (not done, as this is a rehearsal)" if self._check else ""
            self.say(f"{event.host}: {event.task}{how}")

    def _wait(self, event: Event) -> None:
        """Say what a task waits for, once in plain lines."""
        reason = str(event.result.get("msg") or "not yet").strip().splitlines()[0]
        self._now[event.host] = f"{event.task}: {reason}"
        line = f"{event.host}: {event.task}: {reason}"
        if not self._live and not self._verbose and line not in self._waits:
            self._waits.add(line)
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the live ones."""
        if self._live:
            self._live.console.print(line, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for column in range(3):
            table.add_column(no_wrap=True, justify="right" if column else "left")
        table.add_column(no_wrap=True, overflow="ellipsis")
        for host, done in self._done.items():
            table.add_row(host, f"{done} done", f"{self._changed.get(host, 0)} changed", self._now[host])
        return table


def recap(result: RunResult) -> None:
    """Print a line a host, and where the log lies."""
    width = max(len(name) for name in result.hosts)
    for name, host in sorted(result.hosts.items()):
        lost = "  unreachable" if host.unreachable else f"  {host.failed} failed" if host.failed else ""
        print(f"{name:{width}}  {host.ok} ok  {host.changed} changed{lost}", file=sys.stderr)
    print(f"{result.elapsed:.1f} s, log: {result.log}", file=sys.stderr)
