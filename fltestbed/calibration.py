"""How fast each client trains a model below its limits, and what memory that takes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fltestbed.errors import HostError, HostsFailed
from fltestbed.experiment import Experiment
from fltestbed.inventory import Client

_SIZES = (8, 16, 32, 64, 128, 256)
_PAGE = 65536  # bytes: kernels round a memory limit down to a page

Calibration = dict[str, Any]
"""What was measured of a client: samples_per_second and peak_memory_bytes (of its container) with its own batch_size;
model, width, cpus (cores or None), memory (bytes or None), threads, time; and batch_sizes, a list of batch_size,
samples_per_second, peak_memory_bytes, cores (that it got) and throttled (the share of its quota's periods in which it
was used up). A peak is that since the training began, with the smaller sizes before."""


def batch_sizes(clients: Iterable[Client], experiment: Experiment) -> dict[str, list[int]]:
    """Return the batch sizes to try, by client: powers of two, and the one that it trains with."""
    return {client["client"]: sorted({own_size(client, experiment), *_SIZES}) for client in clients}


def own_size(client: Client, experiment: Experiment) -> int:
    """Return the batch size that a client trains with, unless a rule says otherwise."""
    return int(client["settings"].get("batch_size", experiment.train.batch_size))


def calibrations(
    clients: Iterable[Client], experiment: Experiment, answers: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Calibration], dict[str, HostError]]:
    """Return the calibrations by client, and by device why there is none of one.

    `answers` are those of the module testbed_calibrate.
    """
    found = {each["client"]: each for answer in answers.values() for each in answer["clients"]}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    good: dict[str, Calibration] = {}
    problems: dict[str, list[str]] = {}
    for client in clients:
        name, answer = client["client"], found.get(client["client"])
        if answer is None:
            continue
        rows = [
            {
                "batch_size": row["batch_size"],
                "samples_per_second": row["samples"] / row["seconds"],
                "peak_memory_bytes": row["peak_memory_bytes"],
                "cores": row["cores"],
                "throttled": row["throttled"],
            }
            for row in answer["rows"]
        ]
        size = own_size(client, experiment)
        own = next((row for row in rows if row["batch_size"] == size), None)
        if not _same(client, answer):
            what = f"{name}: the kernel does not have its limits as the inventory does; fltestbed up puts them back"
            problems.setdefault(client["device"], []).append(what)
        elif own is None:
            problems.setdefault(client["device"], []).append(_no_figure(name, size, rows, killed=answer["killed"]))
        else:
            good[name] = own | {
                "model": experiment.model,
                "width": client["settings"].get("width", experiment.train.width),
                "cpus": client["cpus"],
                "memory": client["memory"],
                "threads": answer["rows"][0]["threads"],
                "time": now,
                "batch_sizes": rows,
            }
    return good, {device: HostError("", "\n".join(lines)) for device, lines in problems.items()}


def _same(client: Client, answer: Mapping[str, Any]) -> bool:
    """Return whether the kernel has the limits that are asked for."""
    return all(
        (client[key] is None) == (answer[key] is None) and abs((client[key] or 0) - (answer[key] or 0)) < tolerance
        for key, tolerance in (("cpus", 0.005), ("memory", _PAGE))
    )


def _no_figure(name: str, size: int, rows: Sequence[Mapping[str, Any]], *, killed: bool) -> str:
    if killed:
        most = f"; {rows[-1]['batch_size']} went well" if rows else ""
        return (
            f"{name}: the kernel killed the training for want of memory with a batch size of {size} or less{most}: "
            "give it more memory, or a smaller batch_size"
        )
    if rows and rows[-1]["batch_size"] < size:
        return (
            f"{name}: a batch of {size} takes too long, or is more than the client's part of the data; lower batch_size"
        )
    return f"{name}: the training said nothing"


def disturbed(calibrations: Mapping[str, Calibration]) -> list[str]:
    """Return the clients that trained slower than they could, as others had the cores that they were to have."""
    return [
        name
        for name, each in calibrations.items()
        if each["cpus"] and each["cores"] < 0.9 * min(each["cpus"], each["threads"]) and each["throttled"] < 0.5
    ]


def keep(file: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Write the calibrations, beside those of other clients that were made before."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(before | dict(calibrations), indent=2) + "\n", encoding="utf-8")


def require_all(problems: Mapping[str, HostError]) -> None:
    """Raise HostsFailed when a client could not be calibrated."""
    if problems:
        raise HostsFailed(f"clients of {len(problems)} devices could not be calibrated", problems)
