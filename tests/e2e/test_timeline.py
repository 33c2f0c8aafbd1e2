"""A timeline on real devices: events in the middle of training, each with its outcome, and nothing left of them."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import datetime
from typing import Any

from .lab import Lab, rows, wait_for

DEVICE = "pi-3"
EVENTS = """
    - {at: 3s, devices: [pi-3], pause: {}, for: 1s}
    - {round: 2, devices: [pi-3], throttle: {cpus: 0.15}, for: 1 round}
    - {round: 2, devices: [pi-3], shape: {rate: 1mbit}, for: 1 round}
    - {round: 2, devices: supernodes, share: 0.01, partition: {}, for: 4s}
    - {round: 3, devices: [pi-3], kill: {}, for: 3s}
    - {accuracy: 1, devices: [pi-3], kill: {}}
"""
EXPERIMENT = f"""
name: changing
rounds: 4
seed: 1
data: {{name: fashion-mnist, source: debian}}
partitioner: {{name: iid, examples: 4000}}
timeline:
  events:{EVENTS}
"""


def client(lab: Lab) -> dict[str, Any]:
    return dict(next(row for row in lab.status(None)["clients"] if row["client"] == DEVICE))


def conditions(lab: Lab) -> str:
    """Return by what a device would still be changed: its note of it, queues, rules."""
    look = (
        "ls /var/lib/fltestbed | grep conditions; tc qdisc show | grep -e htb -e ifb; iptables -w -S | grep fltestbed-"
    )
    return lab.on(DEVICE, "sh", "-c", f"{look}; true")


def as_before(lab: Lab, before: dict[str, Any]) -> None:
    """Require that nothing of a timeline is left."""
    assert conditions(lab) == ""
    wait_for("all are online", lambda: healthy(lab), 180)
    after = client(lab)
    limits = [key for key in before if "cpu" in key or "memory" in key]
    assert limits and {key: after[key] for key in limits} == {key: before[key] for key in limits}
    assert json.loads(lab.run("plan", "--format", "json", "--limit", DEVICE))[DEVICE] == []


def healthy(lab: Lab) -> bool:
    done = subprocess.run(
        lab.command("status"), cwd=lab.folder, env=lab.environment(), capture_output=True, check=False, timeout=120
    )
    return done.returncode == 0


def seconds(row: dict[str, Any]) -> float:
    return (datetime.fromisoformat(row["end"]) - datetime.fromisoformat(row["start"])).total_seconds()


def lines_of(process: "subprocess.Popen[str]", until: Callable[[str], bool]) -> list[str]:
    """Return what a process says up to a line."""
    said: list[str] = []
    for line in process.stdout or ():
        said.append(line)
        if until(line):
            return said
    raise AssertionError(f"it ended with {process.wait()}:\n{''.join(said)}")


def test_conditions_change_in_the_middle_of_training(lab: Lab) -> None:
    before = client(lab)
    (lab.folder / "experiments").mkdir(exist_ok=True)
    (lab.folder / "experiments" / "changing.yml").write_text(EXPERIMENT)
    shown = json.loads(lab.run("timeline", "changing", "--format", "json"))["timeline"]
    assert json.loads(lab.run("timeline", "changing", "--format", "json"))["timeline"] == shown
    drawn = next(step["device"] for step in shown if step["action"] == "partition")

    with lab.start("run", "changing") as process:
        said = lines_of(process, lambda line: line.startswith("3 s: "))
        with lab.start("watch", "--interval", "1") as watching:
            said += [*(process.stdout or ())]
            watched = watching.stdout.read() if watching.stdout else ""
    text = "".join(said)
    assert process.returncode == 0, text[-6000:]

    run = lab.latest_run()
    found = [row for row in rows(run, "events.jsonl") if row["kind"] == "timeline"]
    told = [(row["device"], row["action"], row["outcome"]) for row in found if row["step"]]
    assert sorted(told) == sorted(
        [
            ("pi-3", "pause", "ok"),
            ("pi-3", "rejoin", "ok"),
            ("pi-3", "throttle", "ok"),
            ("pi-3", "unthrottle", "ok"),
            ("pi-3", "shape", "ok"),
            ("pi-3", "unshape", "ok"),
            (drawn, "partition", "ok"),
            (drawn, "rejoin", "ok"),
            ("pi-3", "kill", "ok"),
            ("pi-3", "rejoin", "ok"),
            ("pi-3", "kill", "not due"),
        ]
    ), found
    assert {row["step"] for row in rows(run, "timeline.jsonl")} == {step["step"] for step in shown}
    for row in found:
        late = row["error_seconds"]
        print(f"{row['when']:>16}  {row['device']:8} {row['action']:10} {row['outcome']:8} {late}")
        assert late is None or -1 < late < 60
        assert f"{row['when']}: {row['device']}  {row['text']}" in text
    assert re.search(r"3 s: pi-3  pause  \d+ ms late", text)
    assert "round 2: pi-3  throttle cpus 0.15" in watched and "is finished" in watched

    lasted = {row["round"]: seconds(row) for row in rows(run, "clients.jsonl") if row["client"] == DEVICE}
    print("pi-3's rounds, s:", lasted, "all rounds, s:", [row["seconds"] for row in rows(run, "rounds.jsonl")])
    assert len(rows(run, "rounds.jsonl")) == 4
    assert lasted[2] > 1.2 * lasted[1], "0.15 cores instead of 0.5, and 1 Mbit/s"
    page = (run / "report" / "report.html").read_text()
    assert "What changed while it trained" in page and "round_times" in page
    assert json.loads((run / "lock.json").read_text())["experiment"]["timeline"]["events"][0]["for"] == 1.0
    as_before(lab, before)


def test_a_controller_that_is_killed_leaves_nothing_cut_off(lab: Lab) -> None:
    before = client(lab)
    event = "devices: [pi-3]"
    cut = f"timeline={{events: [{{at: 0s, {event}, throttle: {{cpus: 0.2}}}}, {{at: 1s, {event}, partition: {{}}}}]}}"
    with lab.start("run", "fashion-mnist-cnn", "--set", "rounds=2", "--set", cut) as process:
        lines_of(process, lambda line: "pi-3  partition" in line)
        assert "conditions-" in conditions(lab)
        process.send_signal(signal.SIGKILL)
    wait_for("the device puts back by itself", lambda: not conditions(lab), 120)
    lab.run("stop")
    as_before(lab, before)
