"""Writes the dashboards that the role grafana provisions: `python dashboards/build.py`.

`--check` writes nothing, and fails when a committed file is not what this code makes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parents[1] / "roles/grafana/files/dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="prometheus")

MONITORING = 'service=~"node-exporter|pi-firmware|cadvisor|cadvisor-proxy|prometheus|grafana"'
REST = 'service!~"node-exporter|pi-firmware|cadvisor|cadvisor-proxy|prometheus|grafana"'
OF_DEVICE = 'device=~"$device"'
OF_CLIENT = 'device=~"$device",client=~"$client"'

Query = tuple[str, str]
"""An expression and the legend of its series."""


def query(expression: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(SOURCE)


def graph(
    title: str,
    unit: str,
    *queries: Query,
    description: str = "",
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
) -> Any:
    """Return a panel of lines over time; half a row wide."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(SOURCE).span(12).height(8)
    panel.fill_opacity(30 if stacked else 5).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    panel.legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return _with(panel, queries)


def number(title: str, unit: str, *queries: Query, description: str = "", decimals: int | None = None) -> Any:
    """Return a panel of the newest value of each series; a sixth of a row wide."""
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(SOURCE).span(4).height(4)
    if decimals is not None:
        panel.decimals(decimals)
    return _with(panel, queries)


def states(title: str, *queries: Query, names: Sequence[tuple[str, str, str]], description: str = "") -> Any:
    """Return a panel with a bar a series, coloured by its value; `names` are values with their words and colours."""
    panel = statetimeline.Panel().title(title).description(description).datasource(SOURCE).span(24).height(8)
    options = {
        value: models.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, text, colour) in enumerate(names)
    }
    panel.mappings([models.ValueMap(options=options)]).show_value("never").merge_values(True)
    return _with(panel, queries)


def rows(
    title: str, *queries: Query, columns: Sequence[str], units: Sequence[str], key: str, description: str = ""
) -> Any:
    """Return a table with a row for each value of the label `key` and a column a query."""
    panel = table.Panel().title(title).description(description).datasource(SOURCE).span(24).height(8)
    for index, (expression, _legend) in enumerate(queries):
        target = query(expression, "").instant().format(PromQueryFormat.TABLE).ref_id(chr(ord("A") + index))
        panel.with_target(target)
    panel.with_transformation(
        models.DataTransformerConfig(id_val="joinByField", options={"byField": key, "mode": "outer"})
    )
    keep = "|".join([key, *(f"Value #{chr(ord('A') + index)}" for index in range(len(queries)))])
    panel.with_transformation(
        models.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"pattern": f"^({keep})$"}})
    )
    for index, (name, unit) in enumerate(zip(columns, units, strict=True)):
        panel.override_by_name(
            f"Value #{chr(ord('A') + index)}",
            [
                models.DynamicConfigValue(id_val="displayName", value=name),
                models.DynamicConfigValue(id_val="unit", value=unit),
            ],
        )
    return panel


def _with(panel: Any, queries: Sequence[Query]) -> Any:
    for index, (expression, legend) in enumerate(queries):
        panel.with_target(query(expression, legend).ref_id(chr(ord("A") + index)))
    return panel


def variable(name: str, label: str, values_of: str) -> dashboard.QueryVariable:
    """Return a choice among the values of a label, all by default."""
    every = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(f"label_values({values_of}, {name})")
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(every)
    )


DEVICE = ("device", "Device", "device:up:bool")
CLIENT = ("client", "Client", "client:memory_used:bytes")

EVENTS = (
    ("Run begins", "blue", "fl_run_info unless fl_run_info offset 10s", "{{run}}"),
    ("Run ends", "purple", "fl_run_info offset 15s unless fl_run_info", "{{run}}"),
    ("Round done", "green", "changes(fl_round[10s]) > 0", "round"),
    ("Client failed", "red", "increase(fl_client_failures_total[15s]) > 0", "{{client}}"),
    (
        "Limit changed",
        "yellow",
        "changes(client:memory_limit:bytes[30s]) > 0 or changes(client:cpu_limit:cores[30s]) > 0",
        "{{client}}",
    ),
    (
        "Condition begins",
        "yellow",
        "fltestbed_condition unless fltestbed_condition offset 15s",
        "{{kind}} {{device}} {{client}}",
    ),
    (
        "Condition ends",
        "yellow",
        "fltestbed_condition offset 15s unless fltestbed_condition",
        "{{kind}} {{device}} {{client}}",
    ),
    (
        "Alert",
        "orange",
        'ALERTS{alertstate="firing",severity!="info"} unless ALERTS offset 15s',
        "{{alertname}} {{device}}",
    ),
)


def event(name: str, colour: str, expression: str, text: str) -> Any:
    annotation = (
        dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour).expr(expression)
    )
    built = annotation.build()
    as_json = built.to_json

    def to_json() -> dict[str, object]:  # the SDK does not know what Prometheus' annotations have beside the rest
        return as_json() | {"titleFormat": name, "textFormat": text, "step": "5s"}

    built.to_json = to_json  # type: ignore[method-assign]

    class Built:
        def build(self) -> models.AnnotationQuery:
            return built

    return Built()


def page(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[tuple[str, str, str]],
    parts: Sequence[tuple[str, Sequence[Any]]],
) -> Any:
    builder = dashboard.Dashboard(title).uid(f"fltestbed-{uid}").description(description).tags(["fltestbed"])
    builder.time("now-30m", "now").refresh("10s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    builder.readonly()
    for each in variables:
        builder.with_variable(variable(*each))
    for each in EVENTS:
        builder.annotation(event(*each))
    builder.link(
        dashboard.DashboardLink("Dashboards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["fltestbed"])
        .as_dropdown(False)
        .keep_time(True)
        .include_vars(True)
    )
    for heading, panels in parts:
        builder.with_row(dashboard.Row(heading))
        for panel in panels:
            builder.with_panel(panel)
    return builder.build()


def federation() -> Any:
    return page(
        "federation",
        "Federation",
        "What the run learns, how long its rounds take, and who trained when.",
        [],
        [
            (
                "Now",
                [
                    number("Run", "none", ("fl_run_info", "{{run}}")),
                    number("Round", "none", ("fl_round", "round")),
                    number("Accuracy", "percentunit", ("model_accuracy", "accuracy"), decimals=1),
                    number("Loss", "none", ("model_loss", "loss"), decimals=3),
                    number("Last round", "s", ("fl_round_duration_seconds", "last round")),
                    number("Since the last round", "s", ("time() - fl_round_finished_timestamp_seconds", "for")),
                ],
            ),
            (
                "Learning",
                [
                    graph(
                        "Accuracy",
                        "percentunit",
                        ("model_accuracy", "global model"),
                        ("fl_client_accuracy", "{{client}}"),
                        most=1,
                        description="The global model's on the server's test set or on the held-out parts; "
                        "a client's on its own.",
                    ),
                    graph("Loss", "none", ("model_loss", "global model"), ("fl_client_loss", "{{client}}")),
                ],
            ),
            (
                "Rounds",
                [
                    states(
                        "Who trained when",
                        ("client:trains:bool", "{{client}}"),
                        names=[("0", "waits", "#37415180"), ("1", "trains", "green")],
                        description="A client trains when it uses more than a tenth of a core.",
                    ),
                    graph(
                        "Round time",
                        "s",
                        ("fl_round_duration_seconds", "round"),
                        ("fl_client_train_seconds", "training of {{client}}"),
                        description="A round lasts as long as its slowest client, and the messages between.",
                    ),
                    graph(
                        "Stragglers",
                        "none",
                        (
                            "fl_client_train_seconds / on () group_left () quantile(0.5, fl_client_train_seconds)",
                            "{{client}}",
                        ),
                        description="Training time of a client's last round, by the median of all: 2 is twice as long.",
                    ),
                    graph(
                        "Failures",
                        "none",
                        ("fl_client_failures_total", "{{client}}"),
                        description="Rounds of this run that a client failed in.",
                    ),
                    graph(
                        "Examples",
                        "none",
                        ("fl_client_examples", "{{client}}"),
                        description="What each client trained on in its last round.",
                    ),
                ],
            ),
        ],
    )


def devices() -> Any:
    of = OF_DEVICE
    return page(
        "devices",
        "Devices",
        "All devices at a glance, and those chosen above in detail.",
        [DEVICE],
        [
            (
                "At a glance",
                [
                    states("Up", ("device:up:bool", "{{device}}"), names=[("0", "down", "red"), ("1", "up", "green")]),
                    rows(
                        "Devices",
                        ("device:cpu_used:ratio", ""),
                        ("device:memory_used:ratio", ""),
                        ("device:disk_used:ratio", ""),
                        ("device:temperature:celsius", ""),
                        ("device:clock_ahead:seconds", ""),
                        columns=["CPU", "Memory", "Disk", "Temperature", "Clock ahead"],
                        units=["percentunit", "percentunit", "percentunit", "celsius", "s"],
                        key="device",
                    ),
                ],
            ),
            (
                "Load",
                [
                    graph("CPU used", "percentunit", (f"device:cpu_used:ratio{{{of}}}", "{{device}}"), most=1),
                    graph(
                        "Load",
                        "none",
                        (f"node_load1{{{of}}}", "{{device}}"),
                        description="Processes that run or wait, mean of a minute.",
                    ),
                    graph("Memory used", "percentunit", (f"device:memory_used:ratio{{{of}}}", "{{device}}"), most=1),
                    graph("Memory available", "bytes", (f"node_memory_MemAvailable_bytes{{{of}}}", "{{device}}")),
                    graph(
                        "Time lost to pressure",
                        "percentunit",
                        (f"rate(node_pressure_cpu_waiting_seconds_total{{{of}}}[1m])", "{{device}} CPU"),
                        (f"rate(node_pressure_memory_waiting_seconds_total{{{of}}}[1m])", "{{device}} memory"),
                        (f"rate(node_pressure_io_waiting_seconds_total{{{of}}}[1m])", "{{device}} disk"),
                        description="Part of the time in which some process waited for what it lacked.",
                    ),
                    graph(
                        "Processes killed for lack of memory",
                        "none",
                        (f"increase(node_vmstat_oom_kill{{{of}}}[1m])", "{{device}}"),
                    ),
                ],
            ),
            (
                "Network and disk",
                [
                    graph("Received", "Bps", (f"device:network_received:bytes_per_second{{{of}}}", "{{device}}")),
                    graph("Sent", "Bps", (f"device:network_sent:bytes_per_second{{{of}}}", "{{device}}")),
                    graph("Disk used", "percentunit", (f"device:disk_used:ratio{{{of}}}", "{{device}}"), most=1),
                    graph(
                        "Disk busy",
                        "percentunit",
                        (f"max by (device) (rate(node_disk_io_time_seconds_total{{{of}}}[1m]))", "{{device}}"),
                    ),
                ],
            ),
            (
                "Heat, frequency and energy",
                [
                    graph("Temperature", "celsius", (f"device:temperature:celsius{{{of}}}", "{{device}}"), least=None),
                    graph(
                        "CPU frequency",
                        "hertz",
                        (f"avg by (device) (node_cpu_scaling_frequency_hertz{{{of}}})", "{{device}}"),
                    ),
                    graph(
                        "Firmware limits",
                        "none",
                        (f'rpi_firmware_flag{{{of},when="now"}}', "{{device}} {{flag}}"),
                        most=1,
                        description="What a Raspberry Pi's firmware reports: under-voltage, lowered frequency, heat.",
                    ),
                    graph(
                        "Power",
                        "watt",
                        (f"sum by (device) (rate(node_rapl_package_joules_total{{{of}}}[1m]))", "{{device}} CPU"),
                        (f"node_hwmon_power_average_watt{{{of}}}", "{{device}} {{sensor}}"),
                    ),
                    graph(
                        "Clock ahead of Prometheus",
                        "s",
                        (f"device:clock_ahead:seconds{{{of}}}", "{{device}}"),
                        least=None,
                        description="Flower refuses a device from 5 s ahead on.",
                    ),
                ],
            ),
        ],
    )


def clients() -> Any:
    of = OF_CLIENT

    def a_round(way: str) -> str:
        counter = f'container_network_{way}_bytes_total{{{of},role="supernode"}}'
        rounds = "(sum(changes(fl_round[5m])) > 0)"
        return f"sum by (client) (increase({counter}[5m])) / on () group_left () {rounds}"

    return page(
        "clients",
        "Clients",
        "What training takes of the limits that each client has, as cAdvisor sees it.",
        [DEVICE, CLIENT],
        [
            (
                "CPU",
                [
                    graph(
                        "CPU used and quota",
                        "none",
                        (f"client:cpu_used:cores{{{of}}}", "{{client}} used"),
                        (f"client:cpu_limit:cores{{{of}}}", "{{client}} quota"),
                        description="In cores.",
                    ),
                    graph(
                        "CPU used of the quota",
                        "percentunit",
                        (f"client:cpu_used:cores{{{of}}} / client:cpu_limit:cores{{{of}}}", "{{client}}"),
                    ),
                    graph(
                        "Periods throttled",
                        "percentunit",
                        (f"client:cpu_throttled:ratio{{{of}}}", "{{client}}"),
                        most=1,
                        description="Part of the scheduler's periods in which the client had used up its quota.",
                    ),
                    graph(
                        "Time throttled",
                        "percentunit",
                        (f'rate(container_cpu_cfs_throttled_seconds_total{{{of},role="client"}}[1m])', "{{client}}"),
                        description="Seconds that its threads were held back in each second; several threads add up.",
                    ),
                ],
            ),
            (
                "Memory",
                [
                    graph(
                        "Memory used and limit",
                        "bytes",
                        (f"client:memory_used:bytes{{{of}}}", "{{client}} used"),
                        (f"client:memory_limit:bytes{{{of}}}", "{{client}} limit"),
                    ),
                    graph(
                        "Memory used of the limit",
                        "percentunit",
                        (f"client:memory_used:bytes{{{of}}} / client:memory_limit:bytes{{{of}}}", "{{client}}"),
                        most=1,
                    ),
                    graph(
                        "Most memory used of the limit",
                        "percentunit",
                        (
                            f'container_memory_max_usage_bytes{{{of},role="client"}}'
                            f' / container_spec_memory_limit_bytes{{{of},role="client"}} < Inf',
                            "{{client}}",
                        ),
                        description="Since the container was started. At 1 the kernel had to make room, or to kill.",
                    ),
                    graph(
                        "Out of memory",
                        "none",
                        (f'increase(container_oom_events_total{{{of},role="client"}}[1m])', "{{client}}"),
                        description="Kills, as an official cAdvisor counts them; Debian's does not.",
                    ),
                ],
            ),
            (
                "Network",
                [
                    graph(
                        "Received",
                        "Bps",
                        (
                            f'rate(container_network_receive_bytes_total{{{of},role="supernode"}}[1m])',
                            "{{client}} {{interface}}",
                        ),
                        description="Of its SuperNode, which is what talks to the server.",
                    ),
                    graph(
                        "Sent",
                        "Bps",
                        (
                            f'rate(container_network_transmit_bytes_total{{{of},role="supernode"}}[1m])',
                            "{{client}} {{interface}}",
                        ),
                    ),
                    graph(
                        "Bytes a round",
                        "bytes",
                        (a_round("receive"), "{{client}} received"),
                        (a_round("transmit"), "{{client}} sent"),
                        description="Mean of the rounds that ended within the last 5 minutes.",
                    ),
                ],
            ),
        ],
    )


def cost() -> Any:
    return page(
        "cost",
        "Testbed cost",
        "What watching and leading take of the devices.",
        [DEVICE],
        [
            (
                "Monitoring",
                [
                    rows(
                        "By device",
                        (f"sum by (device) (service:cpu_used:cores{{{MONITORING}}})", ""),
                        (f"sum by (device) (service:memory_used:bytes{{{MONITORING}}})", ""),
                        ("sum by (device) (scrape_samples_scraped)", ""),
                        columns=["CPU", "Memory", "Samples a scrape"],
                        units=["percentunit", "bytes", "none"],
                        key="device",
                    ),
                    graph(
                        "CPU",
                        "percentunit",
                        (f"service:cpu_used:cores{{{OF_DEVICE},{MONITORING}}}", "{{device}} {{service}}"),
                        stacked=True,
                        description="Of one core.",
                    ),
                    graph(
                        "Memory",
                        "bytes",
                        (f"service:memory_used:bytes{{{OF_DEVICE},{MONITORING}}}", "{{device}} {{service}}"),
                        stacked=True,
                    ),
                    graph("Time of a scrape", "s", (f"scrape_duration_seconds{{{OF_DEVICE}}}", "{{device}} {{job}}")),
                    graph("Samples a scrape", "none", (f"scrape_samples_scraped{{{OF_DEVICE}}}", "{{device}} {{job}}")),
                    graph("Series in Prometheus", "none", ("prometheus_tsdb_head_series", "series")),
                    graph(
                        "History on disk",
                        "bytes",
                        ("prometheus_tsdb_storage_blocks_bytes + prometheus_tsdb_wal_storage_size_bytes", "history"),
                    ),
                ],
            ),
            (
                "Flower",
                [
                    graph(
                        "CPU of the rest",
                        "percentunit",
                        (f"service:cpu_used:cores{{{OF_DEVICE},{REST}}}", "{{device}} {{service}}"),
                        stacked=True,
                        description="SuperNodes, SuperLink, ServerApp and proxy, of one core.",
                    ),
                    graph(
                        "Memory of the rest",
                        "bytes",
                        (f"service:memory_used:bytes{{{OF_DEVICE},{REST}}}", "{{device}} {{service}}"),
                        stacked=True,
                    ),
                ],
            ),
        ],
    )


def built() -> dict[Path, str]:
    """Return every dashboard's JSON by its file."""
    pages = {"federation": federation(), "devices": devices(), "clients": clients(), "cost": cost()}
    return {
        FOLDER / f"{name}.json": JSONEncoder(sort_keys=True, indent=1).encode(page) + "\n"
        for name, page in pages.items()
    }


def main(check: bool) -> int:
    stale = [path for path, text in built().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path} is not what the code makes: run python dashboards/build.py", file=sys.stderr)
        else:
            path.write_text(built()[path], encoding="utf-8")
            print(f"written: {path}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
