#!/usr/bin/python
"""Starts, follows and stops a Flower run on the server host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_run
short_description: Start, follow or stop a Flower run
description:
  - Runs on the server host. What it knows of a run it reads from C(runs/NAME/), where the ServerApp writes; Flower's
    own word is
    asked for only where the ServerApp has been silent for a while, since each question costs about a second of CPU.
options:
  root:
    description: The testbed's folder on the server host.
    type: path
    required: true
  container:
    description: SuperLink's container.
    type: str
    required: true
  serverapp:
    description: The ServerApp's container, at whose processes I(state=watched) looks.
    type: str
  name:
    description: The run.
    type: str
    required: true
  state:
    description:
      - C(submitted) hands the app in C(app/) to Flower. A run that was submitted before is left alone.
      - C(followed) waits for I(round), and returns at once when the run has ended.
      - C(watched) is for an app that writes nothing into C(runs/NAME/). It waits for news in the ServerApp's log, and
        writes C(run.json) by what Flower says.
      - C(stopped) ends a run that goes on; one that has ended is left alone.
    type: str
    choices: [submitted, followed, watched, stopped]
    required: true
  run_config:
    description: Overrides of the app's configuration, as C(flwr run --run-config) takes them.
    type: str
    default: ""
  plan:
    description: What the ServerApp reads as C(experiment.json), for I(state=submitted).
    type: dict
  owner:
    description: User and group that the run's folder belongs to, for I(state=submitted); -1 leaves it as it is.
    type: int
    default: -1
  round:
    description: The round whose end to wait for, from 1. 0 is for the start of the first one.
    type: int
  timeout:
    description: Seconds to wait for that round, or for news.
    type: int
    default: 3600
author: fltestbed authors
"""

RETURN = r"""
run:
  description: The run's record C(run.json).
  returned: always
  type: dict
age:
  description: Seconds since that round ended, or since the first one began; null when the run ended before.
  returned: when I(state=followed)
  type: float
now:
  description: Unix seconds by the server's clock.
  returned: when I(state=followed)
  type: float
round:
  description: The round's row; null when the run ended before it, and for round 0.
  returned: when I(state=followed)
  type: dict
clients:
  description: The clients' rows of that round.
  returned: when I(state=followed)
  type: list
  elements: dict
lines:
  description: What the ServerApp said since the last look.
  returned: when I(state=watched)
  type: list
  elements: str
ended:
  description: Whether the run has ended.
  returned: when I(state=watched)
  type: bool
"""

import datetime
import json
import os
import re
import tempfile
import time
from pathlib import Path

from ansible.module_utils import testbed_docker
from ansible.module_utils.basic import AnsibleModule

ENDED = ("finished", "failed", "stopped")
LOOK_SECONDS = 0.3
SILENT_SECONDS = 20
NEWS_SECONDS = 10


def iso(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="milliseconds")


class Run:
    """A run's folder on the server host."""

    def __init__(self, module):
        self.module = module
        self.folder = Path(module.params["root"]) / "runs" / module.params["name"]
        # The folder is the container's own, and root must not write where it could lay a link; so this lies elsewhere.
        self.flower_id = Path(module.params["root"]) / "submitted" / module.params["name"]
        self.told = self.flower_id.with_suffix(".told")  # how many lines of its log were shown

    def read(self, name):
        """Return a file's text; empty where there is none, or a link in its place."""
        try:
            with os.fdopen(os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def record(self):
        """Return run.json; before the ServerApp wrote it, a record that says that the run starts."""
        if text := self.read("run.json"):
            return json.loads(text)
        return {"status": "starting", "reason": None, "round": 0, "rounds": None}

    def write(self, status, reason, **more):
        """Write run.json where the ServerApp does not."""
        record = self.record() | more | {"status": status, "reason": reason, "updated": iso(time.time())}
        handle, partial = tempfile.mkstemp(dir=self.folder, prefix=".run-")
        with os.fdopen(handle, "w") as out:
            out.write(json.dumps(record))
            os.fchmod(out.fileno(), 0o644)
        Path(partial).replace(self.folder / "run.json")
        return record

    def prepare(self):
        """Make the folder, the ServerApp's own, with its plan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.module.params["plan"] is not None:
            (self.folder / "experiment.json").write_text(json.dumps(self.module.params["plan"]))
            (self.folder / "experiment.json").chmod(0o644)
        self.folder.chmod(0o755)
        os.chown(self.folder, self.module.params["owner"], self.module.params["owner"])

    def rows(self, name):
        path = self.folder / name
        lines = (
            path.read_text().split("\n")[:-1] if path.exists() else []
        )  # a line without its end is still being written
        return [json.loads(line) for line in lines]

    def flwr(self, *arguments):
        """Run flwr in SuperLink's container. Return (exit code, what it printed, what else it said)."""
        return self.module.run_command(["docker", "exec", self.module.params["container"], "flwr", *arguments])

    def ask(self, *arguments):
        """Run flwr for a JSON answer. Return (exit code, the answer, what it said instead)."""
        code, out, err = self.flwr(*arguments, "--format", "json")
        try:
            return code, json.loads(out), err
        except ValueError:
            return code, {}, f"{out}{err}".strip()

    def news(self):
        """Return what the ServerApp has said since the last look."""
        code, out, _err = self.flwr("log", self.flower_id.read_text(), "testbed", "--show")
        if code != 0:
            return []
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.splitlines()]
        lines = [line for line in lines if line and "Printing logstream" not in line]
        told = int(self.told.read_text()) if self.told.exists() else 0
        self.told.write_text(str(len(lines)))
        return lines[told:]

    def at_work(self):
        """Return whether a ServerApp runs: cheaper than to ask Flower."""
        top = testbed_docker.get(f"/containers/{self.module.params['serverapp']}/top") or {"Processes": []}
        return any("flwr-serverapp" in " ".join(process) for process in top["Processes"])

    def flower_status(self):
        """Return Flower's own words on the run, as in ``("finished:failed", "why")``; empty where it has none."""
        _code, answer, _said = self.ask("ls", "testbed", "--run-id", self.flower_id.read_text())
        runs = answer.get("runs") or [{"status": "", "status-details": ""}]
        return runs[0]["status"], runs[0]["status-details"]


def submit(module, run):
    if run.flower_id.exists():
        module.exit_json(changed=False, run=run.record())
    if module.check_mode:
        module.exit_json(changed=True, run=run.record())
    run.prepare()
    code, answer, said = run.ask("run", "/app", "testbed", "--run-config", module.params["run_config"])
    if code != 0 or "run-id" not in answer:
        reason = f"Flower refused the app: {answer.get('error-message') or said}"
        module.fail_json(msg=reason, run=run.write("failed", reason))
    run.flower_id.write_text(str(answer["run-id"]))
    module.exit_json(changed=True, run=run.record())


def follow(module, run):
    wanted = module.params["round"]
    awaited = f"round {wanted} did not end" if wanted else "the first round did not begin"
    deadline = time.monotonic() + module.params["timeout"]
    heard, seen = time.monotonic(), None
    while True:
        record = run.record()
        rows = run.rows("rounds.jsonl")
        row = next((row for row in rows if row["round"] == wanted), None)
        since = row["end"] if row else None
        if wanted == 0 and rows:
            since = rows[0]["start"]
        elif wanted == 0 and record["status"] == "running":
            since = record["updated"]  # when all that it waits for were there
        if since or record["status"] in ENDED:
            break
        if record != seen:
            heard, seen = time.monotonic(), record
        if time.monotonic() - heard > SILENT_SECONDS:
            heard = time.monotonic()
            status, details = run.flower_status()
            if status.startswith("finished") and run.record()["status"] not in ENDED:
                run.write("failed", f"Flower says {status}: {details or 'no more than that'}")
                continue
        if time.monotonic() > deadline:
            module.fail_json(
                msg=f"{awaited} within {module.params['timeout']} s. The run goes on; `fltestbed stop` ends it.",
                run=record,
            )
        time.sleep(LOOK_SECONDS)
    clients = [client for client in run.rows("clients.jsonl") if client["round"] == wanted]
    now = time.time()
    age = now - datetime.datetime.fromisoformat(since).timestamp() if since else None
    module.exit_json(changed=False, round=row, clients=clients, run=record, age=age, now=now)


def watch(module, run):
    record = run.record()
    if record["status"] == "starting":
        stamp = run.flower_id.stat()
        record = run.write("running", None, started=iso(stamp.st_mtime), flwr_run_id=int(run.flower_id.read_text()))
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        worked, until = run.at_work(), time.monotonic() + NEWS_SECONDS
        while time.monotonic() < until and not (worked and not run.at_work()):
            time.sleep(1)
        if record["status"] not in ENDED and not run.at_work():
            status, details = run.flower_status()
            record = run.record()  # an app that records its run has written why it ended
            if status.startswith("finished") and record["status"] not in ENDED:
                how = {"finished:completed": "finished", "finished:stopped": "stopped"}.get(status, "failed")
                reason = None if how == "finished" else f"Flower says {status}: {details or 'no more than that'}"
                record = run.write(how, reason)
        lines = run.news()
        ended = record["status"] in ENDED
        if ended or lines or time.monotonic() > deadline:
            module.exit_json(changed=False, lines=lines, ended=ended, run=record)


def stop(module, run):
    record = run.record()
    if record["status"] in ENDED or not run.folder.exists():
        module.exit_json(changed=False, run=record)
    if module.check_mode:
        module.exit_json(changed=True, run=record)
    if run.flower_id.exists():
        code, answer, said = run.ask("stop", run.flower_id.read_text(), "testbed")
        if code != 0 and not run.flower_status()[0].startswith("finished"):
            module.fail_json(msg=f"Flower did not stop the run: {answer.get('error-message') or said}", run=record)
    module.exit_json(changed=True, run=run.write("stopped", "stopped by the user"))


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "container": {"type": "str", "required": True},
            "serverapp": {"type": "str"},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["submitted", "followed", "watched", "stopped"], "required": True},
            "run_config": {"type": "str", "default": ""},
            "plan": {"type": "dict"},
            "owner": {"type": "int", "default": -1},
            "round": {"type": "int"},
            "timeout": {"type": "int", "default": 3600},
        },
        required_if=[("state", "followed", ("round",)), ("state", "watched", ("serverapp",))],
        supports_check_mode=True,
    )
    try:
        states = {"submitted": submit, "followed": follow, "watched": watch, "stopped": stop}
        states[module.params["state"]](module, Run(module))
    except testbed_docker.EngineUnreachable as error:
        module.fail_json(msg=f"{error}. The run goes on where its containers do; `fltestbed stop` ends it.")
    except OSError as error:
        module.fail_json(msg=f"the run's files on the server host can't be used: {error}")


if __name__ == "__main__":
    main()
