"""The report of a run: what its folder holds as one HTML file, and as CSV and PNG beside it."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fltestbed import charts
from fltestbed.page import Figure, Page, Section, Table, Text, Tile, cell, html, write_files
from fltestbed.results import Run, load

_TIME = "time since the first round began, s"
_POINTS = 300  # of a line over time; more cannot be seen
_BARS = 6000  # of the timeline; more make a browser slow
_MIB = 2**20
_OVER_TIME = (
    ("client:cpu_used:cores", "cpu_over_time", "CPU of each client", "CPU, cores", "client", 1.0),
    ("client:memory_used:bytes", "memory_over_time", "Memory of each client", "memory, MiB", "client", 1 / _MIB),
    ("device:temperature:celsius", "temperature_over_time", "Temperature of each device", "°C", "device", 1.0),
    ("device:cpu_used:ratio", "device_cpu_over_time", "CPU of each whole device", "share of all cores", "device", 1.0),
)
_SUMS = ("cpu_seconds", "throttled_seconds", "received_bytes", "sent_bytes", "energy_joules")
_NO_MONITORING = (
    "Nothing was measured on the devices themselves: the testbed had no host in the group monitoring, or its figures "
    "were not collected."
)


def write(folder: Path) -> Path:
    """Write the report of the run in `folder` to `folder`/report; return the page's path. Raises OSError."""
    run = load(folder)
    page = build(run)
    target = folder / "report"
    target.mkdir(exist_ok=True)
    if run.experiment:
        text = yaml.safe_dump(run.experiment, sort_keys=False, allow_unicode=True)
        (target / "experiment.yml").write_text(text, encoding="utf-8")
    write_files(page, target)
    (target / "report.html").write_text(html(page), encoding="utf-8")
    return target / "report.html"


def build(run: Run) -> Page:
    """Return what the report says."""
    lead = run.experiment.get("description") or run.lock.get("app", {}).get("name") or ""
    parts: Sequence[tuple[str, str, Callable[[Run], list[Table | Figure | Text]]]] = (
        ("accuracy", "Accuracy and loss", _learning),
        ("timeline", "Who worked when, and who waited", _timeline),
        ("stragglers", "Time per round and stragglers", _stragglers),
        *([("conditions", "What changed while it trained", _conditions)] if len(run.conditions) else []),
        ("resources", "Resources against limits", _resources),
        ("failures", "Failures and events", _failures),
        ("setup", "Set-up", _setup),
        ("monitoring", "What monitoring cost", _monitoring),
        ("again", "Run it again", _again),
    )
    sections = [Section(name, title, make(run)) for name, title, make in parts]
    return Page(f"Run {run.name}", lead, tiles(run), sections, run.notes)


def tiles(run: Run) -> list[Tile]:
    """Return the figures to see first."""
    status, reason = run.record.get("status") or "unknown", run.record.get("reason") or ""
    found = [Tile("status", status, reason, {"finished": "good", "running": "", "waiting": ""}.get(status, "bad"))]
    accuracy, loss = run.rounds["server_accuracy"].dropna(), run.rounds["server_loss"].dropna()
    if not accuracy.empty:
        best = run.rounds["round"][accuracy.idxmax()]
        found.append(Tile("final accuracy", f"{accuracy.iloc[-1]:.4f}", f"best {accuracy.max():.4f}, round {best:.0f}"))
    if not run.rounds.empty:
        last = run.rounds["server_loss"].iloc[-1]
        detail = "" if pd.notna(last) else "none: it diverged"
        found.append(Tile("final loss", cell("loss", last), detail, "" if pd.notna(last) else "bad"))
        planned = run.record.get("rounds")
        found.append(Tile("rounds", str(len(run.rounds)), f"of {planned}" if planned else ""))
    elif not loss.empty:
        found.append(Tile("final loss", cell("loss", loss.iloc[-1])))
    if run.seconds is not None:
        found.append(Tile("time", duration(run.seconds), f"{run.seconds:,.1f} s"))
    found.append(Tile("clients", str(len(run.limits)), f"on {_of(run.limits['device'].nunique(), 'device')}"))
    if not run.clients.empty:
        failed = int(run.clients["status"].eq("failed").sum())
        found.append(
            Tile("failures", str(failed), f"of {_of(len(run.clients), 'reply', 'replies')}", "bad" * (failed > 0))
        )
    moved = run.rounds["bytes"].sum()
    if moved:
        found.append(Tile("models moved", f"{moved / 1e6:,.1f} MB", "both ways, without protocol"))
    energy = run.clients["energy_joules"].sum()
    if energy:
        found.append(Tile("energy", f"{energy:,.0f} J", f"of the clients' rounds, {energy_sources(run)}"))
    return found


def learning_frame(run: Run) -> pd.DataFrame:
    """Return a row for each round and whose figures they are (`of`); `seconds` are from the start to its end."""
    seconds = run.since_start(run.rounds["end"]).astype(float)
    kinds = (
        ("global model", "server_accuracy", "server_loss"),
        ("clients, own held-out parts", "client_accuracy", None),
        ("clients, in training", None, "train_loss"),
    )
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "round": run.rounds["round"],
                    "seconds": seconds,
                    "of": name,
                    "accuracy": run.rounds[accuracy] if accuracy else float("nan"),
                    "loss": run.rounds[loss] if loss else float("nan"),
                }
            )
            for name, accuracy, loss in kinds
        ],
        ignore_index=True,
    )


def _learning(run: Run) -> list[Table | Figure | Text]:
    if run.rounds.empty:
        return [Text(_no_rounds(run))]
    frame = learning_frame(run)
    blocks: list[Table | Figure | Text] = [
        Text(
            "Figures of the global model are on the server's test set; of data that lie on the devices, they are of "
            "the model that the round began with, on the clients' held-out parts. Those of clients are means weighted "
            "by examples."
        )
    ]
    if run.rounds[["server_loss", "train_loss"]].isna().to_numpy().any():
        blocks.append(
            Text("A loss that is not a finite number, as it diverged or was not reported, is left out of the lines.")
        )
    for what in ("accuracy", "loss"):
        rows = frame.dropna(subset=[what, "round"])[["round", "seconds", "of", what]]
        if rows.empty:
            blocks.append(Text(f"No round has a finite {what}."))
            continue
        blocks += [
            charts.lines(
                f"{what}_rounds", f"{what.capitalize()} over rounds", f"The {what} after each round.", rows,
                x=("round", "round"), y=(what, what), by="of",
            ),
        ]  # fmt: skip
        timed = rows.dropna(subset=["seconds"])
        if not timed.empty:
            words = f"The {what} when each round had ended."
            title = f"{what.capitalize()} over time"
            x = ("seconds", _TIME)
            blocks.append(charts.lines(f"{what}_time", title, words, timed, x=x, y=(what, what), by="of"))
    own = run.clients.dropna(subset=["accuracy", "round"])[["client", "round", "accuracy", "loss", "examples"]]
    if not own.empty:
        about = "Each client's accuracy on its own held-out part, after it trained and before the models were joined."
        blocks.append(
            charts.lines(
                "client_accuracy", "Accuracy of each client", about, own,
                x=("round", "round"), y=("accuracy", "accuracy"), by="client", half=False,
            )
        )  # fmt: skip
    rounds = run.rounds.drop(columns=["end", "clients_selected"]).rename(columns={"bytes": "model_bytes"})
    blocks.append(Table("rounds", "Rounds, times in UTC", rounds))
    return blocks


def phases(run: Run) -> pd.DataFrame:
    """Return a row for each client, round and phase; `begin` and `until` are seconds since the start.

    Where the time until the reply was not split, it is one phase.
    """
    known = run.clients.dropna(subset=["start", "end", "round"])
    ends = run.since_start(run.rounds.set_index("round")["end"]).to_dict()
    known = known.assign(start=run.since_start(known["start"]), end=run.since_start(known["end"]))
    rows = []
    for row in known.itertuples(index=False):
        begin, until = row.start, row.end

        def add(phase: str, start: float, stop: float, row: Any = row) -> None:
            if stop > start:
                rows.append((row.device, row.client, int(row.round), phase, start, stop, stop - start, row.failure))

        split = {
            "waiting": row.waiting_seconds,
            "download": row.download_seconds,
            "training": row.training_seconds,
            "upload": row.upload_seconds,
        }
        if row.status == "failed":
            add("failed", begin, until)
        elif any(pd.notna(seconds) for seconds in split.values()):
            at = begin
            for phase, seconds in split.items():
                if pd.notna(seconds):
                    add(phase, at, min(at + seconds, until))
                    at = min(at + seconds, until)
            add("rest, until the reply", at, until)
        else:
            add("at work, until the reply", begin, until)
        add("waits for the others", until, ends.get(row.round, until))
    columns = ["device", "client", "round", "phase", "begin", "until", "seconds", "failure"]
    return pd.DataFrame(rows, columns=columns)


def _timeline(run: Run) -> list[Table | Figure | Text]:
    frame = phases(run)
    if frame.empty:
        return [Text(_no_rounds(run))]
    split = set(frame["phase"]) & {"download", "upload", "training", "waiting"}
    words = (
        "Each bar is a client's part of a round. At a grey end it had replied, and waited for the others and for the "
        "server, which joins and evaluates the models. A dashed line is the start of a round."
    )
    blocks: list[Table | Figure | Text] = []
    shown = frame
    if len(frame) > _BARS:
        first = frame["round"].max() - int(_BARS / (len(frame) / frame["round"].nunique())) + 1
        shown = frame[frame["round"] >= first]
        blocks.append(
            Text(f"The chart begins with round {first}, as more bars could not be told apart; the CSV has all.")
        )
    starts = run.rounds.assign(begin=run.since_start(run.rounds["start"]).astype(float))[["round", "begin"]]
    starts = starts[starts["round"].isin(set(shown["round"]))]
    drawn = charts.timeline("timeline", "Timeline of the clients", words, shown, starts)
    blocks.append(replace(drawn, frame=frame))
    if split:
        blocks.append(
            Text(
                "Training is all that the client's app does for a message: its start, the training loop, the "
                "evaluation. Waiting is what remains of the time until the reply. It is drawn first, as most of it is "
                "the time until the client asks for its message; some of it may lie between the other phases."
            )
        )
    else:
        blocks.append(
            Text(
                "How the time until a reply splits into waiting, download, training and upload is not known for this "
                "run, as nothing was measured on the devices. It holds the start of the training process, the way of "
                "the models, the training loop, and the evaluation on the held-out part."
            )
        )
    return blocks


def spells(run: Run) -> pd.DataFrame:
    """Return what was in force on which device, from `begin` to `until` in seconds since the start.

    What was not done, and what is over at once, ends when it begins. A row has device, action, text and outcome too.
    """
    from fltestbed.timeline.schedule import families

    rows: list[dict[str, Any]] = []
    open_: dict[tuple[str, str, str], dict[str, Any]] = {}
    times = run.since_start(run.conditions["time"]).astype(float)
    for event, at in zip(run.conditions.itertuples(index=False), times, strict=True):
        done = event.outcome == "ok"
        begins = not pd.notna(event.ends) and event.action not in ("rejoin", "restore")
        if done:
            touched = [
                key
                for key in open_
                if key[0] == event.device
                and key[2] in families(event.action)
                and event.client in (None, key[1] or None)
            ]
            for key in touched:
                open_.pop(key)["until"] = at
        if begins or not done:
            row = {"device": event.device, "action": event.action, "text": event.text, "outcome": event.outcome}
            rows.append(row | {"begin": at, "until": at})
            if done and event.action != "reboot":
                open_[event.device, event.client or "", families(event.action)[0]] = rows[-1]
    for row in open_.values():
        row["until"] = max(run.seconds or 0.0, row["begin"])
    return pd.DataFrame(rows, columns=["device", "action", "text", "outcome", "begin", "until"])


def _conditions(run: Run) -> list[Table | Figure | Text]:
    done = run.conditions["outcome"].eq("ok")
    late = run.conditions["error_seconds"][done & run.conditions["when"].str.fullmatch(r"[0-9.e+]+ s")]
    words = f"{int(done.sum())} of {_of(len(run.conditions), 'event')} of the timeline were done."
    if not late.empty:
        words += (
            f" Those that were due at a second came {_milliseconds(late.median())} late, {_milliseconds(late.max())} at"
            " most. One that is due at a round is known to be due when the controller hears of that round."
        )
    blocks: list[Table | Figure | Text] = [Text(words)]
    frame = spells(run)
    rounds = run.rounds.assign(
        begin=run.since_start(run.rounds["start"]).astype(float), until=run.since_start(run.rounds["end"]).astype(float)
    )[["round", "begin", "until", "seconds"]].dropna()
    lasting = frame[frame["until"] > frame["begin"]]
    if not rounds.empty and not frame.empty:
        rounds["conditions"] = [
            "; ".join(f"{spell.device} {spell.text}" for spell in during.itertuples(index=False))
            for row in rounds.itertuples(index=False)
            for during in [lasting[(lasting["begin"] < row.until) & (lasting["until"] > row.begin)]]
        ]
        about = "A bar is a round, as wide and as high as its time. Behind it is what was in force on any device."
        blocks.append(charts.rounds_over_time("round_times", "Round times and conditions", about, rounds, lasting))
        about = "What was in force on each device. A point was not done, or was over at once; a dashed line is a round."
        blocks.append(charts.conditions("conditions", "Conditions of each device", about, frame, rounds))
    columns = ["time", "device", "when", "text", "outcome", "planned", "error_seconds", "took_seconds"]
    blocks.append(Table("timeline_events", "Events of the timeline, times in UTC", run.conditions[columns]))
    return blocks


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def ranking(run: Run) -> pd.DataFrame:
    """Return a row a client, the one that kept the others waiting longest first.

    `held_up_seconds` sums, over the rounds in which it was last, how much later than the second-last it was.
    """
    held = _held_up(run)
    ends = run.rounds.set_index("round")["end"]
    rows = run.clients.assign(
        reply_seconds=(run.clients["end"] - run.clients["start"]).dt.total_seconds(),
        waited_seconds=(run.clients["round"].map(ends) - run.clients["end"]).dt.total_seconds().clip(lower=0),
    )
    found = []
    for (device, client), group in rows.groupby(["device", "client"]):
        last = held[held["client"] == client]
        ok = group[group["status"].eq("ok")]
        found.append(
            {
                "client": client,
                "device": device,
                "rounds_last": len(last),
                "held_up_seconds": last["held_up_seconds"].sum(),
                "reply_seconds": ok["reply_seconds"].mean(),
                "train_seconds": ok["train_seconds"].mean(),
                "waited_seconds": ok["waited_seconds"].mean(),
                "rounds_ok": len(ok),
                "rounds_failed": len(group) - len(ok),
            }
        )
    order = ["held_up_seconds", "reply_seconds"]
    return pd.DataFrame(found).sort_values(order, ascending=False, ignore_index=True)


def _held_up(run: Run) -> pd.DataFrame:
    """Return a row a round: its time, who was last, and how long the others waited for that client alone, in s."""
    rows = []
    for row in run.rounds.itertuples(index=False):
        ends = run.clients[run.clients["round"] == row.round].dropna(subset=["end"]).sort_values("end")
        last = ends["client"].iloc[-1] if len(ends) else None
        lead = (ends["end"].iloc[-1] - ends["end"].iloc[-2]).total_seconds() if len(ends) > 1 else 0.0
        rows.append((row.round, row.seconds, last, lead))
    return pd.DataFrame(rows, columns=["round", "seconds", "client", "held_up_seconds"])


def _stragglers(run: Run) -> list[Table | Figure | Text]:
    if run.rounds.empty or run.clients.empty:
        return [Text(_no_rounds(run))]
    ranks = ranking(run)
    per_round = _held_up(run).rename(columns={"client": "last_client"}).fillna({"last_client": "not known"})
    blocks: list[Table | Figure | Text] = []
    if per_round["seconds"].notna().any():
        words = "How long each round took, coloured by the client that replied last."
        y = ("seconds", "time, s")
        blocks.append(charts.rounds("round_seconds", "Time per round", words, per_round, y=y, by="last_client"))
    if len(ranks) > 1:
        words = "For how long, over all rounds, the others had replied and waited for this client alone."
        blocks.append(
            charts.bars(
                "stragglers", "Who kept the others waiting", words, ranks[["client", "held_up_seconds", "rounds_last"]],
                x=("held_up_seconds", "time, s"), y="client",
            )
        )  # fmt: skip
    else:
        blocks.append(Text("There was one client alone, so nobody waited for another."))
    parts = _mean_phases(run)
    if not parts.empty:
        words = "What a round of each client consisted of, on average over the rounds that did not fail."
        blocks.append(
            charts.stacked("phases", "Where a client's time goes", words, parts, x=("seconds", "mean time, s"))
        )
    blocks.append(Table("ranking", "Stragglers", ranks))
    return blocks


def _mean_phases(run: Run) -> pd.DataFrame:
    """Return `client`, `phase` and mean `seconds` a round; without a split, the training loop is told from the rest."""
    ok = run.clients[run.clients["status"].eq("ok")]
    frame = phases(run)
    if ok.empty or frame.empty:
        return pd.DataFrame(columns=["client", "phase", "seconds"])
    frame = frame.merge(ok[["client", "round"]], on=["client", "round"])
    counts = ok.groupby("client").size()
    means = frame.groupby(["client", "phase"])["seconds"].sum().reset_index()
    means["seconds"] /= means["client"].map(counts).astype(float)
    loop = ok.groupby("client")["train_seconds"].mean()
    rows = []
    for row in means.itertuples(index=False):
        inside = loop.get(row.client)
        if row.phase == "at work, until the reply" and inside is not None and pd.notna(inside):
            rows += [
                (row.client, "training", inside),
                (row.client, "rest, until the reply", max(row.seconds - inside, 0)),
            ]
        else:
            rows.append((row.client, row.phase, row.seconds))
    return pd.DataFrame(rows, columns=["client", "phase", "seconds"])


def usage(run: Run) -> pd.DataFrame:
    """Return a row a client: its limits and what it used of them over the run, in cores, seconds and bytes."""
    enforced = run.limits.set_index("client")
    rows = []
    for (device, client), group in run.clients.groupby(["device", "client"]):
        limit = enforced.loc[client]
        memory = limit["memory"] if pd.notna(limit["memory"]) else limit["memory_asked"]
        cpus = limit["cpus"] if pd.notna(limit["cpus"]) else limit["cpus_asked"]
        peak = group["memory_peak_bytes"].max()
        peak = peak if pd.notna(peak) else group["peak_memory_mb"].max() * _MIB
        known = group.dropna(subset=["cpu_seconds", "start", "end"])
        wall = (known["end"] - known["start"]).dt.total_seconds().sum()
        used = known["cpu_seconds"].sum() / wall if wall else float("nan")
        rows.append(
            {
                "client": client,
                "device": device,
                "cpus": cpus,
                "cpu_used": used,
                "cpu_share": used / cpus,
                "memory_limit": memory,
                "memory_peak_bytes": peak,
                "memory_share": peak / memory,
                "memory_mean_bytes": group["memory_mean_bytes"].mean(),
                **{column: group[column].sum(min_count=1) for column in _SUMS},
                "temperature_celsius": group["temperature_celsius"].max(),
                "energy_source": ", ".join(sorted(set(group["energy_source"].dropna()))) or None,
                "out_of_memory": int(group["oom_killed"].sum()),
            }
        )
    return pd.DataFrame(rows)


def _resources(run: Run) -> list[Table | Figure | Text]:
    if run.clients.empty:
        return [Text(_no_rounds(run)), *_over_time(run)]
    frame = usage(run)
    blocks: list[Table | Figure | Text] = []
    measured = run.clients[list(_SUMS)].notna().to_numpy().any()
    if not measured:
        blocks.append(Text(f"{_NO_MONITORING} Memory is what the training process itself reported."))
    memory = frame.assign(
        memory_peak_mib=frame["memory_peak_bytes"] / _MIB, memory_limit_mib=frame["memory_limit"] / _MIB
    )[["client", "memory_peak_mib", "memory_limit_mib"]]
    if memory["memory_peak_mib"].notna().any():
        words = "The most memory that each client held in any round; the red mark is its limit."
        blocks.append(
            charts.bars(
                "memory", "Memory against limits", words, memory,
                x=("memory_peak_mib", "memory, MiB"), y="client", limit="memory_limit_mib",
            )
        )  # fmt: skip
    if frame["cpu_used"].notna().any():
        words = "CPU that each client used on average while it had a round's message; the red mark is its limit."
        blocks.append(
            charts.bars(
                "cpu", "CPU against limits", words, frame[["client", "cpu_used", "cpus"]],
                x=("cpu_used", "CPU, cores"), y="client", limit="cpus",
            )
        )  # fmt: skip
    if frame["energy_joules"].notna().any():
        words = f"Energy of each client's rounds, {energy_sources(run)}."
        blocks.append(
            charts.bars(
                "energy", "Energy", words, frame[["client", "energy_joules", "energy_source"]],
                x=("energy_joules", "energy, J"), y="client",
            )
        )  # fmt: skip
    blocks += _over_time(run)
    empty = [column for column in frame if frame[column].isna().all() and column not in ("cpus", "memory_limit")]
    frame = frame.drop(columns=empty)
    blocks.append(Table("resources", "Resources of each client, over the run", frame))
    blocks.append(Table("clients", "Each client's rounds, times in UTC", _client_rows(run)))
    return blocks


def _client_rows(run: Run) -> pd.DataFrame:
    """Return all that is known of each client's rounds."""
    rows = run.clients.assign(app_start=pd.to_datetime(run.clients["app_start"], unit="s", utc=True))
    rows = rows.drop(columns=[column for column in rows if rows[column].isna().all()])
    return rows if run.clients["oom_killed"].eq(True).any() else rows.drop(columns="oom_killed", errors="ignore")


def _over_time(run: Run) -> list[Table | Figure | Text]:
    """Return a line for each client or device of what was measured while the run lasted."""
    blocks: list[Table | Figure | Text] = []
    for metric, name, title, unit, by, factor in _OVER_TIME:
        zero = by == "client" or "ratio" in metric
        rows = run.series[run.series["metric"] == metric].dropna(subset=[by])
        if rows.empty or run.start is None:
            continue
        rows = rows.assign(seconds=rows["time"] - run.start.timestamp(), value=rows["value"] * factor)
        width = max((rows["seconds"].max() - rows["seconds"].min()) / _POINTS, 1e-9)
        rows = rows.assign(bin=(rows["seconds"] / width).astype(int)).groupby([by, "bin"], as_index=False)
        rows = rows[["seconds", "value"]].mean().drop(columns="bin")
        blocks.append(
            charts.lines(
                name, title, f"{title} while the run lasted, as Prometheus has it ({metric}).", rows,
                x=("seconds", _TIME), y=("value", unit), by=by, points=False, zero=zero,
            )
        )  # fmt: skip
    return blocks


def energy_sources(run: Run) -> str:
    """Return where the energy's figures come from, in words."""
    rows = run.clients.dropna(subset=["energy_joules"])
    words = []
    for source, group in rows.groupby(rows["energy_source"].fillna("an unnamed source")):
        error = group["energy_error"].max()
        words.append(f"by a model, ± {error:.0%}" if source == "model" and pd.notna(error) else f"by {source}")
    return " and ".join(words)


def _failures(run: Run) -> list[Table | Figure | Text]:
    blocks: list[Table | Figure | Text] = []
    if reason := run.record.get("reason"):
        blocks.append(Text(f"The run is {run.record.get('status')}: {reason}."))
    failed = run.clients[run.clients["status"].eq("failed") | run.clients["oom_killed"].eq(True)]
    if not failed.empty:
        rows = failed[["round", "client", "device", "end", "failure"]].rename(columns={"end": "known_at"})
        rows = rows.assign(out_of_memory=failed["oom_killed"].eq(True))
        blocks.append(Table("failures", "Failures, times in UTC", rows))
    elif not run.clients.empty:
        blocks.append(Text("No client failed in any round."))
    if not run.events.empty:
        blocks.append(Table("events", "Events, times in UTC", run.events))
    elif not reason:
        blocks.append(Text("No other events were recorded."))
    if (run.folder / "logs").is_dir():
        blocks.append(Text("What the server and each client said is in the run's folder, below logs/."))
    return blocks


def _setup(run: Run) -> list[Table | Figure | Text]:
    blocks: list[Table | Figure | Text] = []
    if run.experiment:
        blocks.append(Table("experiment", "Experiment", _pairs(flatten(run.experiment))))
    elif run.lock.get("app"):
        blocks.append(
            Text("An app of your own ran, without an experiment of fltestbed; these are the values that it got.")
        )
        blocks.append(
            Table("experiment", "App", _pairs(flatten({**run.lock["app"], **run.lock.get("run_config", {})})))
        )
    if run.limits.empty:
        blocks.append(Text("Which clients were to take part is not recorded."))
    else:
        limits = run.limits.copy()
        enforced = limits[["cpus", "memory"]].notna().to_numpy().any()
        blocks.append(Table("limits", "Clients: limits asked for and enforced by the kernel", limits))
        if not enforced:
            blocks.append(
                Text("What the kernel enforced is not recorded, as there is no lock.json, or no client had a limit.")
            )
    if verified := run.lock.get("verified"):
        words = "Clients: limits measured by fltestbed verify, times in UTC"
        blocks.append(Table("verified", words, pd.DataFrame(verified)))
    blocks += _data(run)
    if hosts := run.lock.get("hosts"):
        blocks.append(
            Table("hosts", "Hosts", pd.DataFrame([_host(name, host) for name, host in sorted(hosts.items())]))
        )
    if versions := flatten(run.lock.get("versions") or {"image": run.record.get("versions") or {}}):
        blocks.append(Table("versions", "Versions", _pairs(versions)))
    if not run.lock:
        blocks.append(
            Text("There is no lock.json: the run was interrupted or failed before hosts and versions were recorded.")
        )
    return blocks


def _host(name: str, host: dict[str, Any]) -> dict[str, Any]:
    groups = host.get("cgroup") or {}
    return {
        "host": name,
        "system": (host.get("os") or {}).get("name"),
        "arch": host.get("arch"),
        "kernel": host.get("kernel"),
        "cores": host.get("cpus"),
        "memory_installed": host.get("memory_mb"),
        "docker": (host.get("docker") or {}).get("version"),
        "control_groups": groups.get("version"),
    }


def _data(run: Run) -> list[Table | Figure | Text]:
    """Return what part of the data each client has."""
    parts = run.lock.get("partitions") or []
    settings = {each["client"]: each.get("settings") or {} for each in run.lock.get("clients") or []}
    if not parts:
        return []
    rows = [
        {
            "client": part["client"],
            "examples": part["examples"],
            "held_out": part["held_out"],
            **settings.get(part["client"], {}),
            "sha256": part["sha256"][:12],
        }
        for part in parts
    ]
    labels = [
        {"client": part["client"], "label": label, "examples": count}
        for part in parts
        for label, count in enumerate(part.get("labels") or [])
    ]
    blocks: list[Table | Figure | Text] = [Table("partitions", "Clients: data and own settings", pd.DataFrame(rows))]
    if labels:
        words = "How many examples of each label each client has."
        blocks.append(charts.heat("labels", "Labels of each client", words, pd.DataFrame(labels)))
    return blocks


def _monitoring(run: Run) -> list[Table | Figure | Text]:
    metrics = {"device:monitoring_cpu_cores": "cpu", "device:monitoring_memory_bytes": "memory"}
    rows = run.series[run.series["metric"].isin(list(metrics))].dropna(subset=["device"])
    if rows.empty:
        return [Text(f"{_NO_MONITORING} So monitoring cost nothing, or its cost is not known.")]
    cost = (
        rows.assign(what=rows["metric"].map(metrics))
        .groupby(["device", "what"])["value"]
        .agg(["mean", "max"])
        .unstack()
    )
    wanted = {
        "monitoring_cpu": ("mean", "cpu"),
        "monitoring_cpu_peak": ("max", "cpu"),
        "memory_mean_bytes": ("mean", "memory"),
        "memory_peak_bytes": ("max", "memory"),
    }
    frame = pd.DataFrame(
        {name: cost[column] for name, column in wanted.items() if column in cost.columns}
    ).reset_index()
    words = "What node-exporter and cAdvisor took on each device while the run lasted."
    return [Text(words), Table("monitoring", "Cost of monitoring", frame)]


def _again(run: Run) -> list[Table | Figure | Text]:
    testbed = run.lock.get("testbed")
    where = f" -i {shlex.quote(testbed)}" if testbed else ""
    blocks: list[Table | Figure | Text] = []
    if run.experiment:
        from fltestbed.experiment import Experiment

        known = Experiment.model_validate({"name": "any"}).run_config()
        own = {key: value for key, value in run.lock.get("run_config", {}).items() if key not in (*known, "run")}
        settings = "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in own.items())
        file = shlex.quote(f"runs/{run.name}/report/experiment.yml")
        blocks.append(
            Text("experiment.yml beside this report is the experiment with every default and setting filled in:")
        )
        blocks.append(Text(f"fltestbed up{where}\nfltestbed run {file}{settings}{where}", code=True))
    elif run.lock.get("app"):
        settings = "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in run.lock["run_config"].items())
        blocks.append(Text(f"fltestbed up{where}\nfltestbed run --app FOLDER{settings}{where}", code=True))
    else:
        return [Text("The run left neither an experiment nor a lock, so there is nothing to repeat it by.")]
    if run.lock:
        facts = {
            "testbed": testbed,
            "app": " ".join(str(run.lock["app"].get(key)) for key in ("name", "version"))
            if run.lock.get("app")
            else None,
            "app, SHA-256 of its files": (run.lock.get("app") or {}).get("sha256"),
            "seed": run.experiment.get("seed"),
            "set of partitions": run.lock.get("partition_set"),
            "test set, SHA-256": run.lock.get("test_set"),
            **{f"image of the clients{suffix}": image for suffix, image in _images(run)},
        }
        blocks.append(
            Table("lock", "What has to be the same", _pairs({key: fact for key, fact in facts.items() if fact}))
        )
        blocks.append(
            Text(
                "The same seed and partitions give every client the same data and the same first model. Times differ "
                "from run to run, and with them which replies come first; sums of floating-point numbers depend on "
                "that order, on the number of threads and on the processor, so figures agree closely, not to the last "
                "digit. fltestbed compare shows how far, and what differed."
            )
        )
    return blocks


def _images(run: Run) -> list[tuple[str, str]]:
    found = {
        container["image_id"]
        for host in run.lock.get("hosts", {}).values()
        for container in host.get("containers") or []
        if container.get("client") and container.get("image_id")
    }
    return [(f" {number}" if len(found) > 1 else "", image) for number, image in enumerate(sorted(found), 1)]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a tree of mappings as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _pairs(facts: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{"what": key, "value": cell("value", value)} for key, value in facts.items()])


def duration(seconds: float) -> str:
    """Return a time as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _of(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _no_rounds(run: Run) -> str:
    if run.lock and not run.experiment:
        return (
            "This app reports no rounds to fltestbed, so there is nothing to show here; its own figures are in logs/."
        )
    status = run.record.get("status")
    reason = run.record.get("reason")
    ended = f": it is {status}" + (f", as {reason}" if reason else "") if status else ""
    return f"The run has no finished round{ended}."
