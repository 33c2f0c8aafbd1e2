"""Several runs side by side: what each reached, at what cost, and what differed between them."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fltestbed import charts
from fltestbed.errors import ResultsError
from fltestbed.estimates import estimate
from fltestbed.page import Figure, Page, Section, Table, Text, Tile, html
from fltestbed.report import duration, energy_sources, flatten, learning_frame
from fltestbed.results import Run, load

_HOST = ("arch", "cpus", "kernel", "memory_mb", "os.name", "docker.version", "cgroup.version")
_LIMITS = ("cpus_asked", "cpus", "memory_asked", "memory")
_OF_PARTITIONS = re.compile(r"partition_set|clients\.[^.]+\.(examples|partition)")


def read(folders: Sequence[Path]) -> list[Run]:
    """Read the runs to compare. Raises ResultsError for fewer than two, one twice, or two of one name."""
    if len(set(folders)) < 2:
        raise ResultsError("there is one run alone, and nothing to compare it with", "name two different runs or more")
    names = [folder.name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ResultsError(f"{', '.join(twice)}: is named more than once", "name each run once; rename a copy's folder")
    return [load(folder) for folder in folders]


def reached_by_all(runs: Sequence[Run]) -> float | None:
    """Return the highest accuracy, in full hundredths, that every run with one has reached; None where none has."""
    best = [run.rounds["server_accuracy"].max() for run in runs]
    known = [accuracy for accuracy in best if pd.notna(accuracy)]
    return math.floor(min(known) * 100 + 1e-9) / 100 if known else None


def measures(runs: Sequence[Run], accuracy: float | None) -> list[dict[str, Any]]:
    """Return a row a run. Times are in seconds since its first round began; what is not known is None."""
    return [_measure(run, accuracy) for run in runs]


def _measure(run: Run, accuracy: float | None) -> dict[str, Any]:
    target = {} if accuracy is None else _first_at(run, accuracy)
    rounds, clients = run.rounds, run.clients

    def total(column: str) -> float | None:
        value = clients[column].sum(min_count=1)
        return float(value) if pd.notna(value) else None

    def final(column: str) -> float | None:
        return float(rounds[column].iloc[-1]) if len(rounds) and pd.notna(rounds[column].iloc[-1]) else None

    def both(*values: float | None) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return {
        "run": run.name,
        "status": run.record.get("status"),
        "rounds": len(rounds),
        "seconds": run.seconds,
        **target,
        "accuracy": final("server_accuracy"),
        "loss": final("server_loss"),
        "failures": int(clients["status"].eq("failed").sum()) if len(clients) else None,
        "model_bytes": int(rounds["bytes"].sum()) if rounds["bytes"].notna().any() else None,
        "network_bytes": both(total("received_bytes"), total("sent_bytes")),
        "cpu_seconds": total("cpu_seconds"),
        "energy_joules": total("energy_joules"),
        "energy_source": energy_sources(run) or None,
    }


def _first_at(run: Run, accuracy: float) -> dict[str, Any]:
    """Return the first round whose global model has the accuracy, and when that was known."""
    there = run.rounds[run.rounds["server_accuracy"] >= accuracy]
    seconds = run.since_start(there["end"]).astype(float)
    return {
        f"seconds_to_{accuracy:g}": float(seconds.iloc[0]) if len(there) and pd.notna(seconds.iloc[0]) else None,
        f"rounds_to_{accuracy:g}": int(there["round"].iloc[0]) if len(there) else None,
    }


def repeats(
    runs: Sequence[Run], accuracy: float | None, values: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return a row for each set of finished runs that differ in the seed alone; nothing if there is no such set.

    A run of which there is no other has a row too. `values` are what to say of each run, by its name, seed or not.
    """
    groups = _groups(runs)
    if len(groups) == len(runs):
        return []
    said = {name: {key: value for key, value in row.items() if key != "seed"} for name, row in (values or {}).items()}
    return [{**said.get(group[0].name, {}), **_summary(group, accuracy)} for group in groups]


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs, those together that finished and differ in the seed alone, or in nothing."""
    facts = {run.name: _facts(run) for run in runs if run.record.get("status") == "finished"}
    groups: list[list[Run]] = []
    for run in runs:
        finished = [group for group in groups if {run.name, group[0].name} <= facts.keys()]
        alike = [group for group in finished if _are_repeats(facts[group[0].name], facts[run.name])]
        if alike:
            alike[0].append(run)
        else:
            groups.append([run])
    return groups


def _are_repeats(first: dict[str, Any], second: dict[str, Any]) -> bool:
    unlike = {key for key in first.keys() | second.keys() if _said(first, key) != _said(second, key)}
    if "experiment.seed" in unlike and "partition_set" in unlike:  # another seed, so other shards
        unlike = {key for key in unlike if not _OF_PARTITIONS.fullmatch(key)}
    return unlike <= {"experiment.seed"}


def _summary(group: Sequence[Run], accuracy: float | None) -> dict[str, Any]:
    rows = measures(group, accuracy)

    def estimated(key: str) -> dict[str, Any]:
        known = [row[key] for row in rows if row[key] is not None]
        return {f"{key}_{name}": value for name, value in estimate(known)._asdict().items()}

    found: dict[str, Any] = {"n": len(group), **estimated("accuracy")}
    if accuracy is not None:
        time = f"seconds_to_{accuracy:g}"
        found |= {f"reached_{accuracy:g}": sum(row[time] is not None for row in rows), **estimated(time)}
    return found | {"runs": ", ".join(run.name for run in group)}


def differences(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return what differed between the runs: `what`, and its value under each run's name."""
    facts = [_facts(run) for run in runs]
    keys = dict.fromkeys(key for known in facts for key in known)
    rows = [
        {"what": key, **{run.name: _said(known, key) for run, known in zip(runs, facts, strict=True)}} for key in keys
    ]
    return [row for row in rows if len(set(row.values()) - {row["what"]}) > 1]


def _said(facts: dict[str, Any], key: str) -> str:
    if key not in facts:
        return "not recorded"
    return "none" if facts[key] is None else str(facts[key])


def _facts(run: Run) -> dict[str, Any]:
    """Return what a run depends on; no names and times, which always differ."""
    lock = run.lock
    found = {f"experiment.{key}": value for key, value in flatten(run.experiment).items()} if run.experiment else {}
    if lock.get("app"):
        found |= {f"app.{key}": value for key, value in lock["app"].items()}
    told = {"model", "seed", "num-server-rounds", *(key.replace("_", "-") for key in run.experiment.get("train") or {})}
    for key, value in (lock.get("run_config") or {}).items():
        if not run.experiment or key not in told:
            found[f"run_config.{key}"] = value
    found |= flatten({"versions": lock.get("versions") or {"image": run.record.get("versions") or {}}})
    found |= {key: lock[key] for key in ("testbed", "partition_set", "test_set") if lock.get(key)}
    for part in lock.get("partitions") or []:
        found[f"clients.{part['client']}.examples"] = part["examples"]
        found[f"clients.{part['client']}.partition"] = part["sha256"][:12]
    for client in lock.get("clients") or []:
        settings = flatten({"clients": {client["client"]: {"settings": client.get("settings") or {}}}})
        found |= {key: value for key, value in settings.items() if value != {}}
    limits = run.limits.astype(object).where(run.limits.notna(), None)
    for row in limits.to_dict("records"):
        found |= {f"clients.{row['client']}.{limit}": row[limit] for limit in _LIMITS}
    for name, host in (lock.get("hosts") or {}).items():
        facts = flatten(host)
        found |= {f"hosts.{name}.{key}": facts[key] for key in _HOST if key in facts}
    return found


def page(runs: Sequence[Run], accuracy: float | None) -> Page:
    """Return the comparison as a page, with the runs' lines over one another."""
    rows = measures(runs, accuracy)
    blocks: list[Table | Figure | Text] = [Table("measures", "Measures", pd.DataFrame(rows))]
    if summaries := repeats(runs, accuracy):
        words = "Mean, standard deviation, and 95 % interval of the mean. Times are those of the runs that got there."
        blocks += [Table("repeats", "Runs that differ in the seed alone", pd.DataFrame(summaries)), Text(words)]
    return Page(
        title="Comparison of runs",
        lead=", ".join(run.name for run in runs),
        tiles=_tiles(runs, rows, accuracy),
        sections=[
            Section("measures", "What each run reached, and at what cost", blocks),
            Section("accuracy", "Accuracy and loss", _learning(runs)),
            Section("rounds", "Time per round", _rounds(runs)),
            Section("differences", "What differed", _differing(runs)),
        ],
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
    )


def write(runs: Sequence[Run], accuracy: float | None, file: Path) -> None:
    """Write the comparison as one HTML file. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html(page(runs, accuracy)), encoding="utf-8")


def _tiles(runs: Sequence[Run], rows: list[dict[str, Any]], accuracy: float | None) -> list[Tile]:
    """Return the figures to see first. The best are those of the means, where there are repeats."""
    summaries = [(_summary(group, accuracy), _called(group)) for group in _groups(runs)]
    found = [Tile("runs", str(len(rows)))]
    if accuracy is not None:
        key = f"seconds_to_{accuracy:g}"
        there = [row for row in rows if row[key] is not None]
        found.append(Tile(f"reached {accuracy:g}", str(len(there)), f"of {len(rows)} runs"))
        whole = [each for each in summaries if each[0][f"reached_{accuracy:g}"] == each[0]["n"]]
        if whole:
            first, name = min(whole, key=lambda each: each[0][f"{key}_mean"])
            found.append(Tile(f"first at {accuracy:g}", duration(first[f"{key}_mean"]), name, "good"))
    if known := [each for each in summaries if each[0]["accuracy_mean"] is not None]:
        best, name = max(known, key=lambda each: each[0]["accuracy_mean"])
        sure = f" ± {best['accuracy_high'] - best['accuracy_mean']:.4f}" if best["accuracy_sd"] is not None else ""
        found.append(Tile("best final accuracy", f"{best['accuracy_mean']:.4f}{sure}", name, "good"))
    return found


def _called(group: Sequence[Run]) -> str:
    first = group[0].name
    return first if len(group) == 1 else f"mean of {len(group)} runs: {first} and its repeats"


def _learning(runs: Sequence[Run]) -> list[Table | Figure | Text]:
    frames = []
    for run in runs:
        rows = learning_frame(run)
        frames.append(rows[rows["of"] == "global model"].assign(run=run.name))
    frame = pd.concat(frames, ignore_index=True)
    blocks: list[Table | Figure | Text] = []
    for what in ("accuracy", "loss"):
        rows = frame.dropna(subset=[what, "round"])[["run", "round", "seconds", what]]
        if rows.empty:
            blocks.append(Text(f"No run has a finite {what} of the global model."))
            continue
        words = (
            f"The global model's {what} on the server's test set; of data that lie on the devices, of the model that "
            "the round began with, on the clients' held-out parts."
        )
        time = ("seconds", "time since the first round began, s")
        blocks += [
            charts.lines(
                f"{what}_rounds",
                f"{what.capitalize()} over rounds",
                words,
                rows,
                x=("round", "round"),
                y=(what, what),
                by="run",
            ),
            charts.lines(
                f"{what}_time", f"{what.capitalize()} over time", words, rows, x=time, y=(what, what), by="run"
            ),
        ]
    return blocks


def _rounds(runs: Sequence[Run]) -> list[Table | Figure | Text]:
    frames = [run.rounds[["round", "seconds"]].assign(run=run.name) for run in runs]
    frame = pd.concat(frames, ignore_index=True).dropna()
    if frame.empty:
        return [Text("No run has a finished round.")]
    words = "How long each round took."
    x, y = ("round", "round"), ("seconds", "time, s")
    return [charts.lines("round_seconds", "Time per round", words, frame, x=x, y=y, by="run", half=False, zero=True)]


def _differing(runs: Sequence[Run]) -> list[Table | Figure | Text]:
    rows = differences(runs)
    if not rows:
        return [
            Text("As far as they are recorded, experiment, app, versions, data, limits and hosts are the same in all.")
        ]
    return [
        Text("What is not in this table was the same in all of them, or was recorded in none."),
        Table("differences", "Differences in lock.json", pd.DataFrame(rows)),
    ]
