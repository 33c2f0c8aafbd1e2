"""Runs a playbook and says what became of each host. The one module that imports ansible_runner."""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from fltestbed.errors import (
    AnsibleFailed,
    Cancelled,
    HostError,
    HostsFailed,
    HostsUnreachable,
    PreflightError,
)
from fltestbed.paths import ansible_environment, content_dir, state_dir

_POLL = 0.2  # s between two looks for Ansible's end
_ENDING = 5.0  # s after which what guards Ansible has ended it for certain
_GUARD = str(Path(__file__).with_name("_guard.py"))
_KINDS = {
    "runner_on_start": "start",
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
    "runner_item_on_ok": "item",
    "runner_item_on_failed": "item",
    "runner_retry": "waiting",
}


@dataclass(frozen=True)
class Event:
    """One thing that Ansible said.

    `kind` is start, ok, failed, unreachable, skipped, item (of a loop), waiting (a task is tried again) or output.
    """

    kind: str
    host: str = ""
    task: str = ""
    module: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""

    @property
    def changed(self) -> bool:
        """Whether the task changed the host."""
        return self.kind == "ok" and bool(self.result.get("changed"))


@dataclass(frozen=True)
class HostResult:
    """How many tasks of a play ended how on one host, and the error that stopped it."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    error: HostError | None = None
    preflight: bool = False


@dataclass(frozen=True)
class RunResult:
    """What a playbook did. `elapsed` in seconds; `log` holds Ansible's own output."""

    rc: int
    elapsed: float
    log: Path
    hosts: Mapping[str, HostResult]
    _results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    _items: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]

    def results(self, module: str) -> Mapping[str, Mapping[str, Any]]:
        """Return, for each host, the last result of the tasks that use a module."""
        return self._results.get(module, {})

    def items(self, module: str) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return, for each host, the results of every item of the looped tasks that use a module."""
        return self._items.get(module, {})

    def require_success(self) -> None:
        """Raise PreflightError, HostsFailed or HostsUnreachable when a host did not get through."""
        lost = {name: host for name, host in self.hosts.items() if host.failed or host.unreachable}
        if not lost:
            return
        errors = {name: host.error or HostError("", "no reason was given") for name, host in lost.items()}
        failed = [host for host in lost.values() if host.failed]
        count = f"{len(lost)} of {len(self.hosts)} hosts"
        if not failed:
            raise HostsUnreachable(
                f"{count} cannot be reached", errors, "check power, network and ansible_host; the same command goes on"
            )
        if all(host.preflight for host in failed):
            hint = "nothing was deployed on those that a check refused; the same command goes on"
            raise PreflightError(f"{count} cannot be used as they are", errors, hint)
        raise HostsFailed(f"{count} failed", errors, "mend the cause; the same command goes on from there")


def run_playbook(
    playbook: str | Path,
    inventory: Path,
    *,
    limit: str = "",
    tags: str = "",
    check: bool = False,
    diff: bool = False,
    verbosity: int = 0,
    become_password: str = "",
    extra_vars: Mapping[str, Any] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunResult:
    """Run a playbook, by its name in playbooks/ or by path, on an inventory folder.

    A host that fails or cannot be reached does not raise here (`RunResult.require_success` does): the others went on.
    Strings in `extra_vars` are data: Ansible does not look for templates in them.

    Raises Cancelled on SIGINT or SIGTERM, once Ansible and all that it started here have ended, and AnsibleFailed when
    Ansible came to no host.
    """
    from ansible_runner import Runner, RunnerConfig

    path = playbook if isinstance(playbook, Path) else content_dir() / "playbooks" / f"{playbook}.yml"
    started = time.monotonic()
    with _Cancel() as cancel, _open_log(inventory.name, path.stem) as log:
        private = Path(tempfile.mkdtemp(prefix="fltestbed-"))
        try:
            _write_inputs(private, extra_vars or {})
            flags = ["--check"] * check + ["--diff"] * diff + ["--ask-become-pass"] * bool(become_password)
            config = RunnerConfig(
                private_data_dir=str(private),
                project_dir=str(Path.cwd()),
                playbook=str(path),
                inventory=str(inventory),
                limit=limit or None,
                tags=tags or None,
                verbosity=verbosity,
                cmdline=" ".join(flags),
                passwords={r"BECOME password.*:\s*?$": become_password} if become_password else None,
                fact_cache_type="memory",
                quiet=True,
            )
            config.prepare()
            config.env = _environment(config.env)
            config.command = [sys.executable, "-I", "-S", _GUARD, str(private), str(os.getpid()), *config.command]
            recorder = _Recorder(log, on_event)
            with cancel.ends(private / "guard"):
                _, rc = Runner(config, event_handler=recorder, cancel_callback=cancel).run()
        finally:
            shutil.rmtree(private)
    log_path = Path(log.name)
    if cancel.requested:
        raise Cancelled(
            "\n".join(["stopped as asked", *recorder.standing()]),
            f"what a host was at may still end there; the same command goes on from where it is. Log: {log_path}",
        )
    return recorder.result(rc, log_path, time.monotonic() - started)


def _write_inputs(private: Path, extra_vars: Mapping[str, Any]) -> None:
    """Write the runner's own settings, and the extra vars: not on a command line, where `ps` would show them."""

    def data(value: Any) -> Any:
        if isinstance(value, str):
            return {"__ansible_unsafe": value}
        if isinstance(value, Mapping):
            return {key: data(item) for key, item in value.items()}
        return [data(item) for item in value] if isinstance(value, list | tuple) else value

    settings = {"pexpect_timeout": _POLL, "suppress_output_file": True}
    (private / "env").mkdir()
    for name, content in (("settings", settings), ("extravars", data(extra_vars))):
        (private / "env" / name).write_text(json.dumps(content), encoding="utf-8")


def _environment(prepared: Mapping[str, str]) -> dict[str, str]:
    """Return what Ansible needs of the environment that the runner prepared, which holds all of the user's."""
    own = {name: prepared[name] for name in ("ANSIBLE_STDOUT_CALLBACK", "AWX_ISOLATED_DATA_DIR")}
    folders = [str(content_dir() / "plugins" / "callback"), prepared["ANSIBLE_CALLBACK_PLUGINS"]]
    own["ANSIBLE_CALLBACK_PLUGINS"] = os.pathsep.join(folders)
    return ansible_environment() | own | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml"}


def _open_log(testbed: str, verb: str) -> TextIO:
    folder = state_dir(testbed) / "logs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{verb}.log"
    path.touch(mode=0o600)
    return path.open("a", encoding="utf-8")


class _Recorder:
    """The runner's event handler: keeps what the result needs, writes the log, and leaves no event file behind."""

    def __init__(self, log: TextIO, on_event: Callable[[Event], None]) -> None:
        self._log = log
        self._on_event = on_event
        self._stats: Mapping[str, Mapping[str, int]] | None = None
        self._errors: dict[str, tuple[HostError, bool]] = {}
        self._results: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._items: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
        self._said: list[str] = []
        self._now: dict[str, str] = {}
        self._counts: dict[str, Counter[str]] = {}

    def __call__(self, raw: dict[str, Any]) -> bool:
        output = raw.get("stdout", "").replace("\r\n", "\n")
        if output:
            self._log.write(output + "\n")
            self._log.flush()
        data = raw.get("event_data", {})
        kind = _KINDS.get(raw["event"], "output")
        if raw["event"] == "playbook_on_stats":
            self._stats = data
        elif kind == "output" and output:
            self._said.append(output)
        event = Event(
            kind=kind,
            host=data.get("host", ""),
            task=data.get("task", ""),
            module=data.get("task_action", "").rpartition(".")[2],
            result=data.get("res") or {},
            output=output,
        )
        if kind in _KINDS.values() and event.host:
            counts = self._counts.setdefault(event.host, Counter())
            counts.update([kind, *["changed"] * event.changed])
            if kind not in ("item", "waiting"):
                self._now[event.host] = event.task if kind == "start" else ""
        if kind == "item":
            self._items.setdefault(event.module, {}).setdefault(event.host, []).append(event.result)
        elif kind == "ok":
            self._results.setdefault(event.module, {})[event.host] = event.result
        elif kind == "unreachable" or (kind == "failed" and not data.get("ignore_errors")):
            is_preflight = Path(data.get("task_path", "").rpartition(":")[0]).stem == "preflight"
            self._errors[event.host] = (HostError(event.task, _message(event.result)), is_preflight)
        self._on_event(event)
        return False

    def standing(self) -> list[str]:
        """Return a line a host: what it was at, and what was done there."""
        return [
            f"  {host}: {counts['ok']} done, {counts['changed']} changed" + (f"; at: {task}" if task else "")
            for host, task in sorted(self._now.items())
            for counts in [self._counts[host]]
        ]

    def result(self, rc: int, log: Path, elapsed: float) -> RunResult:
        stats = self._stats
        if not stats or not stats["processed"]:
            said = [line for line in "\n".join(self._said).splitlines() if "ERROR" in line]
            raise AnsibleFailed(said[0] if said else "no host matched", f"Ansible's whole output is in {log}")
        hosts = {}
        for name in stats["processed"]:
            counts = {
                count: stats[ansible].get(name, 0)
                for count, ansible in (
                    ("ok", "ok"),
                    ("changed", "changed"),
                    ("failed", "failures"),
                    ("unreachable", "dark"),
                    ("skipped", "skipped"),
                )
            }
            error, is_preflight = None, False
            if counts["failed"] or counts["unreachable"]:
                error, is_preflight = self._errors.get(name, (None, False))
            hosts[name] = HostResult(**counts, error=error, preflight=is_preflight)
        return RunResult(rc, elapsed, log, hosts, self._results, self._items)


def _message(result: Mapping[str, Any]) -> str:
    """Return what a person needs of a failed result: no JSON, no traceback."""
    if "censored" in result:
        return "the details are kept secret, as they may hold a password or a key"
    failed_items = [item for item in result.get("results", []) if isinstance(item, Mapping) and item.get("failed")]
    if failed_items:
        return "\n".join(dict.fromkeys(_message(item) for item in failed_items))
    message = str(result.get("msg") or "no reason was given").strip()
    if "rc" in result:
        message += f" (exit code {result['rc']})"
    said = str(result.get("stderr") or result.get("module_stderr") or result.get("stdout") or "").strip()
    last = "\n".join(said.splitlines()[-5:])
    return message if last in message else f"{message}\n{last}"


class _Cancel:
    """Ends Ansible on SIGINT or SIGTERM, through its guard; a second signal ends it at once.

    The runner alone would kill Ansible's main process and orphan its workers.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._passed_on = 0
        self._guard = Path(os.devnull)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Cancel":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Pass a signal on that came before there was a guard. The runner itself shall kill nothing."""
        self._pass_on()
        return False

    @contextlib.contextmanager
    def ends(self, guard: Path) -> Iterator[None]:
        """Pass signals on to the guard whose id lands in this file, and end it when an event's handler fails."""
        self._guard = guard
        try:
            yield
        except BaseException:
            self.requested += 1
            until = time.monotonic() + _ENDING
            while not self._pass_on() and time.monotonic() < until:
                time.sleep(0.02)
            raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested += 1
        self._pass_on()

    def _pass_on(self) -> bool:
        """Tell the guard of what was asked since; return whether it has ended."""
        try:
            pid = int(self._guard.read_text(encoding="ascii"))
            has_ended = ") Z " in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
            while self._passed_on < self.requested:
                self._passed_on += 1
                os.kill(pid, signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return True
        return has_ended
