"""Writes what a run took, on its devices and in its clients, into the run's folder once it has ended."""

import json
from datetime import datetime
from pathlib import Path

from fltestbed import events, resources, series
from fltestbed.errors import FltestbedError
from fltestbed.inventory import Testbed
from fltestbed.monitoring import Prometheus, opened


def write(testbed: Testbed, folder: Path) -> str:
    """Write series.parquet, resources.parquet, resources.csv and events.jsonl as far as their figures are known.

    Return what to tell of the devices' figures. A run without a record leaves nothing.
    """
    if not (folder / "run.json").exists():
        return "no figures of the devices: the run left no record"
    measured, said = _measured(testbed, folder)
    if measured:
        series.save(measured, folder / "series.parquet")
    if (folder / "clients.jsonl").exists():
        resources.save(resources.join(folder, measured), folder)
    events.save(events.events(folder, measured), folder)
    return said


def _measured(testbed: Testbed, folder: Path) -> tuple[series.Series | None, str]:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if not testbed.monitoring:
        return None, "no figures of the devices: no host is in group monitoring"
    if "started" not in run:
        return None, "no figures of the devices: the run never began"
    start, end = (datetime.fromisoformat(run[key]).timestamp() for key in ("started", "updated"))
    try:
        with opened(testbed.monitoring, "prometheus") as (port, _process):
            found = series.fetch(Prometheus(port), testbed.server.name, start, end, settle=run["status"] == "finished")
    except FltestbedError as error:
        return None, f"no figures of the devices: {error.message}"
    samples = sum(len(times) for times, _values in found.samples.values())
    return (
        found,
        f"figures of the devices: {samples} samples in series.parquet, a row a client and round in resources.csv",
    )
