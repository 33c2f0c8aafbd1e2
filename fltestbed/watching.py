"""A run as it goes: one look after the other at every host, through one SSH connection each."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fltestbed.errors import FltestbedError, HostError, HostsUnreachable
from fltestbed.inventory import Host, Testbed
from fltestbed.paths import content_dir
from fltestbed.remote import command

ENDED = ("finished", "failed", "stopped")
_ANSWER = 20.0  # s that the server host gets for its first answer
_AGAIN = 5.0  # s until a connection that broke is tried anew


@dataclass
class Client:
    """What is known of a client. cpu: cores used since the last look; memory: bytes; None where it is not known."""

    name: str
    device: str
    state: str = "unknown"
    cpu: float | None = None
    cpus: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    row: Mapping[str, Any] | None = None
    """Its newest row of clients.jsonl."""

    @property
    def seconds(self) -> float | None:
        """How long its last round took."""
        if not self.row:
            return None
        start, end = (datetime.fromisoformat(self.row[key]) for key in ("start", "end"))
        return (end - start).total_seconds()


@dataclass
class View:
    """A run at one moment. `record` is its run.json; `rounds` are its rows of rounds.jsonl.

    `conditions` are the rows of events.jsonl that tell of its timeline.
    """

    run: str
    record: Mapping[str, Any]
    rounds: list[Mapping[str, Any]]
    clients: list[Client]
    conditions: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.record["status"] in ENDED


class _Channel:
    """A connection to a host, where look.py runs; made anew when it breaks."""

    def __init__(self, host: Host, arguments: list[str], news: threading.Condition) -> None:
        source = (content_dir() / "plugins/module_utils/testbed_docker.py").read_text(encoding="utf-8")
        source += (Path(__file__).parent / "look.py").read_text(encoding="utf-8")
        self._argv = command(host, ["python3", "-c", source, *arguments])
        self._news = news
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self.seen: list[dict[str, Any]] = []
        self.alive: bool | None = None
        """Whether the host answers; None until that is known."""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            with subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as process:
                self._process = process
                assert process.stdin and process.stdout  # noqa: S101 for mypy
                with contextlib.suppress(OSError, ValueError):
                    for line in process.stdout:
                        with self._news:
                            self.seen.append(json.loads(line))
                            self.alive = True
                            self._news.notify()
                        process.stdin.write(b".")
                        process.stdin.flush()
                self._end(process)
            with self._news:
                self.alive = False
                self._news.notify()
            self._closed.wait(_AGAIN)

    def take(self) -> list[dict[str, Any]]:
        """Return what was seen since the last call."""
        seen, self.seen = self.seen, []
        return seen

    def close(self) -> None:
        self._closed.set()
        if self._process:
            self._end(self._process)
        self._thread.join(2)

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()


@dataclass
class _State:
    run: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    rounds: list[Mapping[str, Any]] = field(default_factory=list)
    conditions: list[Mapping[str, Any]] = field(default_factory=list)
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    used: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def watch(testbed: Testbed, interval: float) -> Generator[View, None, None]:
    """Yield the testbed's latest run whenever a host was looked at, `interval` s apart, until the run has ended.

    Raises HostsUnreachable when the server host does not answer, FltestbedError when there was no run yet.
    """
    news = threading.Condition()
    project = f"fltestbed-{testbed.name}"
    hosts = {host.name: host for host in (testbed.server, *testbed.devices)}
    runs = {testbed.server.name: f"{testbed.root}/runs"}
    channels = {
        name: _Channel(host, [project, runs.get(name, ""), str(interval)], news) for name, host in hosts.items()
    }
    try:
        state = _State()
        _await_server(testbed, channels[testbed.server.name], news)
        while True:
            with news:
                seen = {name: channel.take() for name, channel in channels.items()}
                alive = {name: channel.alive for name, channel in channels.items()}
            for name, looks in seen.items():
                for look in looks:
                    _learn(state, look, is_server=name == testbed.server.name)
            if not state.run:
                raise FltestbedError(f"the testbed {testbed.name} has had no run", "fltestbed run starts one")
            view = _view(testbed, state, alive)
            yield view
            if view.ended:
                return
            with news:
                news.wait_for(lambda: any(channel.seen for channel in channels.values()), interval)
            time.sleep(min(0.2, interval / 4))  # the others' answers come at about the same time
    finally:
        for channel in channels.values():
            channel.close()


def _await_server(testbed: Testbed, channel: _Channel, news: threading.Condition) -> None:
    with news:
        if not news.wait_for(lambda: channel.seen, _ANSWER):
            error = HostError("ssh", f"no answer within {_ANSWER:g} s")
            raise HostsUnreachable(
                "the server host does not answer", {testbed.server.name: error}, "fltestbed status says more"
            )


def _learn(state: _State, look: Mapping[str, Any], *, is_server: bool) -> None:
    """Take over what one look at a host showed."""
    run = look.get("run") if is_server else None
    if run:
        if run["name"] != state.run:
            state.run, state.rounds, state.conditions, state.rows = run["name"], [], [], {}
        state.record = run["record"]
        state.rounds += run["rounds"]
        state.conditions += run["conditions"]
        state.rows |= {row["client"]: row for row in run["clients"]}
    for name, used in (look["clients"] or {}).items():
        before = state.used.get(name)
        if before and used and used["at"] > before["at"] and used["cpu_seconds"] >= before["cpu_seconds"]:
            state.cpu[name] = (used["cpu_seconds"] - before["cpu_seconds"]) / (used["at"] - before["at"])
        state.used[name] = used


def _view(testbed: Testbed, state: _State, alive: Mapping[str, bool | None]) -> View:
    clients = []
    current = state.record["round"] + 1
    for each in testbed.clients:
        name, row = each["client"], state.rows.get(each["client"])
        client = Client(name, each["device"], cpus=each["cpus"], memory_limit=each["memory"], row=row)
        used = state.used.get(name)
        if alive[each["device"]] is False:
            client.state = "unreachable"
        elif alive[each["device"]]:
            client.state = "stopped"
            if used:
                client.cpu, client.memory = state.cpu.get(name), used["memory"]
                client.cpus, client.memory_limit = used["cpus"], used["memory_limit"]
                client.state = "trains" if used["trains"] else "waits"
                if row and row["round"] == current:
                    client.state = "failed" if row["failure"] else "done"
        clients.append(client)
    return View(state.run, state.record, state.rounds, clients, state.conditions)
