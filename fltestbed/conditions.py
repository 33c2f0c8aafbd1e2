"""Conditions of devices, changed while they train: what to change, where, and the sessions that do it at once.

A `Sessions` has one connection a device, on which plugins/module_utils/testbed_conditions.py runs. What a session
changed it puts back when it ends, whatever ends it.
"""

import contextlib
import json
import queue
import random
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fltestbed import network
from fltestbed.errors import ConditionError, InventoryError
from fltestbed.inventory import Host, Testbed, client_number
from fltestbed.paths import content_dir, nearest
from fltestbed.remote import command

KINDS = ("throttle", "shape", "pause", "kill", "partition", "reboot", "rejoin", "restore")
PARAMETERS: Mapping[str, tuple[str, ...]] = {"throttle": ("cpus", "memory"), "shape": ("rate", *network.KEYS)}
"""The kinds that take parameters, and need one at least."""
OF_DEVICES = ("shape", "partition", "reboot")
"""The kinds that act on a whole device; the others can act on one of its clients."""

_BEAT = 5.0  # s between two signs of life; the device's side ends without one for 30 s
_OPEN = 20.0  # s that a device gets for its first answer
_SOURCES = ("testbed_docker", "testbed_in_force", "testbed_conditions")
_BOOT = """
import json, os, sys, types
text = b""
while len(text) < int(sys.argv[1]):
    text += os.read(0, int(sys.argv[1]) - len(text)) or sys.exit()
for name, source in json.loads(text).items():
    module = sys.modules["ansible.module_utils." + name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.serve()
"""


@dataclass(frozen=True)
class Action:
    """What to change. `parameters` are in cores, bytes, bit/s, s and shares of 1; `action` makes them from text."""

    kind: str
    parameters: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A device with its clients of which something is changed; without clients it is the whole device."""

    device: str
    clients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of an action: when it began and ended (Unix s by this machine's clock), if it was done, in words.

    `clock` is how far the device's clock is ahead of this one, in s; None where the device did not answer.
    """

    started: float
    ended: float
    ok: bool
    text: str
    clock: float | None = None


def action(kind: str, given: Mapping[str, Any]) -> Action:
    """Return a kind and its parameters, written as `{cpus: 0.5, memory: 512m}` or `{rate: 5mbit, delay: 80ms}`.

    `rate` stands for rate_up and rate_down. Raises ConditionError, whose `key` is the parameter that is wrong.
    """
    if kind not in KINDS:
        raise ConditionError(f"there is no condition {kind!r}", nearest(kind, KINDS))
    known = PARAMETERS.get(kind, ())
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) if known else f"{kind} takes no parameters"
            raise ConditionError(f"{kind} has no parameter {key!r}", hint, str(key))
    if known and not given:
        raise ConditionError(f"{kind} needs a parameter", f"give one of {', '.join(known)}")
    if kind == "shape":
        rates = dict.fromkeys(("rate_up", "rate_down"), given["rate"]) if "rate" in given else {}
        numbers, wrong = network.parse(rates | {key: value for key, value in given.items() if key != "rate"})
        if wrong:
            key, what, fix = wrong[0]
            asked = key if key in given else "rate"
            raise ConditionError(f"shape: {what.replace(key, asked)}", fix, asked)
        return Action(kind, numbers)
    try:
        return Action(kind, {key: client_number(key, value) for key, value in given.items()})
    except InventoryError as error:
        raise ConditionError(f"{kind}: {error.message}", error.hint, error.message.split()[0]) from error


def targets(
    testbed: Testbed, names: Iterable[str], kind: str, *, share: float = 1.0, seed: int = 0
) -> tuple[Target, ...]:
    """Return the targets that names of devices, clients and groups stand for, each device once, in inventory order.

    Of a share below 1, that part of what is named (one at least) is drawn with the seed. Raises ConditionError for a
    name that is unknown, and for what cannot be done there.
    """
    if not 0 < share <= 1:
        raise ConditionError(f"share cannot be {share:g}", "write a number above 0, at most 1, as in 0.3", "share")
    devices = [device.name for device in testbed.devices]
    clients = {client["client"]: client["device"] for client in testbed.clients}
    groups = {"all": tuple(devices)} | {name: members for name, members in testbed.groups.items() if members}
    picked: dict[str, None] = {}
    for name in names:
        if name not in devices and name not in clients and name not in groups:
            hint = nearest(name, [*devices, *clients, *groups])
            raise ConditionError(f"the testbed {testbed.name} has no device, client or group {name!r}", hint)
        picked |= dict.fromkeys((name,) if name in devices or name in clients else groups[name])
    drawn = list(picked)
    if share < 1:
        drawn = random.Random(seed).sample(sorted(picked), max(1, round(share * len(picked))))  # noqa: S311 no secret
    found = [
        Target(device, tuple(client for client in clients if client in drawn and clients[client] == device))
        for device in devices
        if device not in drawn and any(clients.get(name) == device for name in drawn)
    ]
    found += [Target(device) for device in devices if device in drawn]
    for target in found:
        _require_possible(testbed, target, kind)
    return tuple(sorted(found, key=lambda target: devices.index(target.device)))


def _require_possible(testbed: Testbed, target: Target, kind: str) -> None:
    """Raise ConditionError for what can be seen here not to work."""
    name = target.device
    host = next(device for device in testbed.devices if device.name == name)
    if target.clients and kind in OF_DEVICES:
        raise ConditionError(
            f"{kind} acts on a device, and {', '.join(target.clients)} is a client of {name}", f"name {name}"
        )
    if kind in ("shape", "partition") and name == testbed.server.name:
        raise ConditionError(
            f"{kind} of {name}: it is the server's own host, so what its clients say to the server never leaves it",
            "throttle, pause and kill work there",
        )
    if kind == "reboot" and host.connection.get("ansible_connection") == "local":
        raise ConditionError(f"reboot of {name}: it is this machine", "name devices that are reached through SSH")


class Sessions:
    """Connections to devices, ready to change conditions within milliseconds; put back what they changed at their end.

    A device that does not answer makes no error but an outcome that says so, and is tried again in the background. The
    methods may be called from several threads. When this process dies the devices notice, and put back by themselves.
    """

    def __init__(self, testbed: Testbed, devices: Iterable[str]) -> None:
        name = uuid.uuid4().hex
        hosts = {device.name: device for device in testbed.devices}
        self._channels = {device: _Channel(testbed, hosts[device], name) for device in dict.fromkeys(devices)}

    def __enter__(self) -> "Sessions":
        with ThreadPoolExecutor(max(1, len(self._channels))) as pool:
            list(pool.map(_Channel.start, self._channels.values()))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def unreachable(self) -> dict[str, str]:
        """The devices without a connection just now, each with the reason."""
        return {name: channel.reason for name, channel in self._channels.items() if not channel.alive}

    def check(self, device: str, action: Action, clients: Sequence[str] = (), timeout: float = 30.0) -> Outcome:
        """Ask a device whether it can do an action, and change nothing. As `apply` otherwise."""
        return self._channels[device].ask("check", action, clients, timeout)

    def apply(self, device: str, action: Action, clients: Sequence[str] = (), timeout: float = 30.0) -> Outcome:
        """Do an action on a device, or on some of its clients. Returns after `timeout` s at the latest."""
        return self._channels[device].ask("apply", action, clients, timeout)

    def close(self) -> dict[str, Outcome]:
        """Put back what was changed here, and return what became of that on each device. Once is enough."""
        channels, self._channels = self._channels, {}
        with ThreadPoolExecutor(max(1, len(channels))) as pool:
            return dict(zip(channels, pool.map(_Channel.close, channels.values()), strict=True))


class _Channel:
    """One device's connection; made anew when it breaks."""

    def __init__(self, testbed: Testbed, host: Host, session: str) -> None:
        sources = {
            name: (content_dir() / f"plugins/module_utils/{name}.py").read_text(encoding="utf-8") for name in _SOURCES
        }
        self._source = json.dumps(sources).encode()
        self._hello = {"project": f"fltestbed-{testbed.name}", "session": session}
        self._argv = command(host, ["python3", "-c", _BOOT, str(len(self._source))])
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._asking = threading.Lock()  # one question at a time
        self._closed = threading.Event()
        self._count = 0
        self._changed = False
        self.reason = ""
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    @property
    def alive(self) -> bool:
        return not self.reason

    def start(self) -> None:
        with self._asking:
            self._open(_OPEN)
        self._keeper.start()

    def ask(self, what: str, action: Action, clients: Sequence[str], timeout: float) -> Outcome:
        """Return a device's answer; if the connection is broken it is made anew, once."""
        until = time.monotonic() + timeout
        began = time.time()
        question = {"do": what, "kind": action.kind, "parameters": dict(action.parameters), "clients": list(clients)}
        if not self._asking.acquire(timeout=timeout):
            return Outcome(began, time.time(), False, f"the device is busy with another action for {timeout:g} s")
        try:
            self._changed |= what == "apply"
            for _ in range(2):
                if not self.alive and not self._open(until - time.monotonic()):
                    break
                outcome = self._exchange(question, until)
                if outcome:
                    return outcome
                if action.kind == "reboot" or self.alive:  # it may have heard that
                    break
            return Outcome(began, time.time(), False, f"no answer: {self.reason or f'not within {timeout:g} s'}")
        finally:
            self._asking.release()

    def close(self) -> Outcome:
        """End the device's side, which puts back what it changed."""
        began = time.time()
        self._closed.set()
        with self._asking:
            outcome = None
            if self.alive or (self._changed and self._open(_OPEN / 2)):
                outcome = self._exchange({"do": "end"}, time.monotonic() + _OPEN)
            self._end()
        self._keeper.join()
        if outcome:
            return outcome
        if not self._changed:
            return Outcome(began, time.time(), True, "nothing was changed")
        hint = "what was changed is put back by the device itself, or by fltestbed restore"
        return Outcome(began, time.time(), False, f"no answer: {self.reason or 'in time'}; {hint}")

    def _exchange(self, question: Mapping[str, Any], until: float) -> Outcome | None:
        """Return the answer to a question, None when none came in time or the connection broke."""
        self._count += 1
        sent = time.time()
        if not self._write(json.dumps({**question, "id": self._count}).encode() + b"\n"):
            return None
        while (left := until - time.monotonic()) > 0:
            try:
                answer = self._answers.get(timeout=left)
            except queue.Empty:
                return None
            if "lost" in answer:
                self._lose(answer["lost"])
                return None
            if answer["id"] == self._count:
                return self._outcome(answer, sent, time.time())
        return None

    @staticmethod
    def _outcome(answer: Mapping[str, Any], sent: float, heard: float) -> Outcome:
        """Place the device's times on this clock: the way there took as long as the way back."""
        way = max(0.0, heard - sent - (answer["ended"] - answer["started"])) / 2
        clock = answer["started"] - (sent + way)
        return Outcome(sent + way, heard - way, answer["ok"], answer["text"], clock)

    def _open(self, timeout: float) -> bool:
        """Start the device's side anew; it takes over what the former one of this session left."""
        self._end()
        self._answers = queue.Queue()
        self.reason = ""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 the reader closes it
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        threading.Thread(target=self._read, args=(self._process, self._answers, errors), daemon=True).start()
        if self._write(self._source) and self._exchange(
            {"do": "hello"} | self._hello, time.monotonic() + max(0.0, timeout)
        ):
            return True
        self._lose(self.reason or f"no session within {timeout:.0f} s")
        return False

    @staticmethod
    def _read(process: "subprocess.Popen[bytes]", answers: "queue.Queue[dict[str, Any]]", errors: Any) -> None:
        assert process.stdout  # noqa: S101 for mypy
        with errors, process.stdout, contextlib.suppress(ValueError):
            for line in process.stdout:
                if line.startswith(b"{"):  # a login may print more
                    answers.put(json.loads(line))
            process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            answers.put({"lost": said[-1] if said else f"the connection ended with {process.returncode}"})

    def _write(self, data: bytes) -> bool:
        assert self._process  # noqa: S101 for mypy
        assert self._process.stdin  # noqa: S101 for mypy
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (OSError, ValueError):
            self._lose(self._why_lost())
            return False
        return True

    def _why_lost(self) -> str:
        """Return why the connection broke, as its reader knows within a moment."""
        with contextlib.suppress(queue.Empty):
            while True:
                answer = self._answers.get(timeout=1)
                if "lost" in answer:
                    return str(answer["lost"])
        return "the connection broke"

    def _lose(self, reason: str) -> None:
        self.reason = reason
        self._end()

    def _keep(self) -> None:
        """Give signs of life, and look after a broken connection."""
        while not self._closed.wait(_BEAT):
            if not self._asking.acquire(blocking=False):
                continue
            try:
                self._take_late_news()
                if not self.alive or not self._write(b"\n"):
                    self._open(_OPEN)
            finally:
                self._asking.release()

    def _take_late_news(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                answer = self._answers.get_nowait()
                if "lost" in answer:
                    self._lose(answer["lost"])

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
        with contextlib.suppress(PermissionError):
            process.kill()
