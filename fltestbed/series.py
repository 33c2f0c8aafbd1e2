"""What Prometheus saw of a run: each metric of every device and client as times and values, and as series.parquet.

Import it where it is used: numpy takes a tenth of a second, pyarrow more.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fltestbed.monitoring import Prometheus

Floats = NDArray[np.float64]

_MONITORING = "node-exporter|pi-firmware|cadvisor|cadvisor-proxy|prometheus|grafana"
_IDLE = 0.001  # of what a counter grows by in a time that it is known to grow in, how much in a second of the others
_SETTLE = 3  # scrapes after which a silent exporter is not waited for any more


class Key(NamedTuple):
    """What a series is of; `client` is empty for what is the device's."""

    metric: str
    device: str
    client: str = ""


class Alert(NamedTuple):
    """An alert that fired, from when on (Unix s)."""

    time: float
    name: str
    severity: str
    device: str
    client: str


@dataclass
class Series:
    """Samples by what they are of: times (Unix s by Prometheus' clock, rising) and values."""

    step: float
    """Seconds between two scrapes."""
    server: str
    """The host whose clock the run's own times are by."""
    samples: dict[Key, tuple[Floats, Floats]] = field(default_factory=dict)
    alerts: list[Alert] = field(default_factory=list)
    machines: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Profile and architecture by device."""

    def get(self, metric: str, device: str, client: str = "") -> tuple[Floats, Floats]:
        """Return times and values; empty ones where there are none."""
        nothing = np.empty(0)
        return self.samples.get(Key(metric, device, client), (nothing, nothing))

    def clock_ahead(self, device: str) -> float:
        """Return how far a device's clock is ahead of Prometheus', in s; 0 where it is not known."""
        _times, values = self.get("device:clock_ahead:seconds", device)
        return float(np.median(values)) if len(values) else 0.0


def _of(role: str, name: str, more: str = "") -> str:
    return f'container_{name}{{role="{role}"{more}}}'


_CONDITIONS = {
    f"condition:{kind}:bool": f'fltestbed_condition{{kind="{kind}"}}'
    for kind in ("throttle", "shape", "pause", "kill", "partition")
}
_RAW = {
    **_CONDITIONS,
    "client:cpu:seconds_total": _of("client", "cpu_usage_seconds_total"),
    "client:cpu_throttled:seconds_total": _of("client", "cpu_cfs_throttled_seconds_total"),
    "client:memory_used:bytes": _of("client", "memory_working_set_bytes"),
    "client:memory_max:bytes": _of("client", "memory_max_usage_bytes"),
    "client:oom_kills:total": _of("client", "oom_events_total"),
    # SuperNode's way to the server is its first network, by the networks' names in the compose file.
    "client:network_received:bytes_total": _of("supernode", "network_receive_bytes_total", ',interface="eth0"'),
    "client:network_sent:bytes_total": _of("supernode", "network_transmit_bytes_total", ',interface="eth0"'),
    "supernode:cpu:seconds_total": _of("supernode", "cpu_usage_seconds_total"),
    "supernode:memory_used:bytes": _of("supernode", "memory_working_set_bytes"),
    "device:oom_kills:total": "node_vmstat_oom_kill",
    "device:energy_rapl:joules_total": "node_rapl_package_joules_total",
} | {
    rule: rule
    for rule in (
        "client:cpu_limit:cores",
        "client:cpu_throttled:ratio",
        "client:cpu_used:cores",
        "client:memory_limit:bytes",
        "device:clock_ahead:seconds",
        "device:cpu_used:ratio",
        "device:disk_used:ratio",
        "device:memory_used:ratio",
        "device:network_received:bytes_per_second",
        "device:network_sent:bytes_per_second",
        "device:temperature:celsius",
        "device:up:bool",
    )
}
"""Metrics by the selectors whose samples they are; where one selects several series, their sum."""

_COMPUTED = {
    "device:monitoring_cpu_cores": f'sum by (device) (service:cpu_used:cores{{service=~"{_MONITORING}"}})',
    "device:monitoring_memory_bytes": f'sum by (device) (service:memory_used:bytes{{service=~"{_MONITORING}"}})',
    "device:cpu_frequency:hertz": "avg by (device) (node_cpu_scaling_frequency_hertz)",
    # A machine's own sensors overlap; the largest is the nearest to the whole.
    "device:power_hwmon:watts": "max by (device) (node_hwmon_power_average_watt or node_hwmon_power_watt)",
    # A plug's figure is written where its reader runs; `plugged` says whose plug it is where that is another host.
    "device:power_plug:watts": ('sum by (device) (label_replace(plug_power_watts, "device", "$1", "plugged", "(.+)"))'),
}
"""Metrics by expressions, which Prometheus computes once a scrape interval."""

METRICS = (*_RAW, *_COMPUTED)


def fetch(prometheus: Prometheus, server: str, start: float, end: float, *, settle: bool = True) -> Series:
    """Return what Prometheus has of the time from `start` to `end` (Unix s), and of two scrapes around it.

    With `settle` it is asked as soon as every client was looked at once more after the end.

    Raises FltestbedError when it does not answer.
    """
    step = prometheus.scrape_interval()
    if settle:
        _settle(prometheus, step, end)
    series = Series(step, server)
    until = end + 2 * step
    span = f"{until - start + 2 * step:.0f}s"
    for metric, expression in [*_RAW.items(), *_COMPUTED.items()]:
        asked = f"{expression}[{span}]" if metric in _RAW else f"({expression})[{span}:{step:.0f}s]"
        sums: dict[Key, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for each in prometheus.query(asked, until):
            labels = each["metric"]
            key = Key(metric, labels.get("device", ""), labels.get("client", ""))
            for at, value in each["values"]:
                sums[key][at] += float(value)
        for key, samples in sums.items():
            ordered = sorted(samples)
            series.samples[key] = np.array(ordered), np.array([samples[at] for at in ordered])
    for key, (times, values) in series.samples.items():
        if _RAW.get(key.metric, "").startswith("container_"):  # cAdvisor stamps its samples by the device's clock
            series.samples[key] = times - series.clock_ahead(key.device), values
    series.alerts = _alerts(prometheus.query(f'ALERTS{{alertstate="firing"}}[{span}]', until), step)
    for each in prometheus.query(f'last_over_time(up{{job="node_exporter"}}[{span}])', until):
        labels = each["metric"]
        series.machines[labels["device"]] = labels.get("profile", ""), labels.get("arch", "")
    return series


def _settle(prometheus: Prometheus, step: float, end: float) -> None:
    """Wait until every client that is watched was looked at after `end`, at most for a few scrapes."""
    while time.time() < end + _SETTLE * step:
        # The oldest of the clients' newest samples; a client that is gone has none.
        oldest = prometheus.query(f"min(timestamp({_RAW['client:cpu:seconds_total']}))")
        if not oldest or float(oldest[0]["value"][1]) > end:
            return
        time.sleep(1)


def _alerts(found: list[dict[str, object]], step: float) -> list[Alert]:
    """Return when alerts began to fire: the first of the samples that follow each other closely."""
    alerts = []
    for each in found:
        labels = cast(Mapping[str, str], each["metric"])
        before = -np.inf
        for at, _value in cast(list[tuple[float, str]], each["values"]):
            if at - before > 3 * step:
                names = (labels.get(name, "") for name in ("alertname", "severity", "device", "client"))
                alerts.append(Alert(at, *names))
            before = at
    return sorted(alerts)


def save(series: Series, file: Path) -> None:
    """Write every sample as a row of time (float64, Unix s), metric, device, client (string or null), value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = sorted(series.samples)
    counts = [len(series.samples[key][0]) for key in keys]

    def repeated(values: list[str | None]) -> object:
        indices = np.repeat(np.arange(len(values)), counts)
        return pa.array(values, pa.string()).take(pa.array(indices))

    columns = {
        "time": np.concatenate([series.samples[key][0] for key in keys] or [np.empty(0)]),
        "metric": repeated([key.metric for key in keys]),
        "device": repeated([key.device for key in keys]),
        "client": repeated([key.client or None for key in keys]),
        "value": np.concatenate([series.samples[key][1] for key in keys] or [np.empty(0)]),
    }
    pq.write_table(pa.table(columns), file, compression="zstd")


def grown(
    times: Floats,
    values: Floats,
    start: float,
    end: float,
    tolerance: float,
    busy: Sequence[tuple[float, float]] = (),
) -> float | None:
    """Return by how much a counter grew from `start` to `end`; one that began anew counts from 0.

    Between two samples it grows evenly; where times of `busy` (from, to) lie between them, nearly all in those, and by
    the same in each. None where a sample is missing within `tolerance` s of either end.
    """
    if not len(times) or times[0] > start + tolerance or times[-1] < end - tolerance:
        return None
    steps = np.diff(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(steps < 0, values[1:], steps))])

    def warped(at: Floats) -> Floats:
        done = (np.clip((at - first) / (last - first), 0, 1) for first, last in busy if last > first)
        return sum(done, at * _IDLE)

    before, after = np.interp(warped(np.array([start, end])), warped(times), total)
    return float(after - before)


def summed(times: Floats, values: Floats) -> Floats:
    """Return the integral over time from the first sample on, by trapezoids: power (W) becomes a counter (J)."""
    return np.concatenate([[0.0], np.cumsum(np.diff(times) * (values[1:] + values[:-1]) / 2)])


def within(times: Floats, values: Floats, start: float, end: float) -> Floats:
    """Return the values of the samples from `start` to `end`."""
    return values[(times >= start) & (times <= end)]
