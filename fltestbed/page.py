"""A page of tables and charts: one HTML file that needs nothing else, and each of them as CSV and PNG beside it."""

import base64
import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from fltestbed.paths import cache_dir

_VEGA_LITE = "6.4"
_MIB = 2**20
_WIDTH, _HALF_WIDTH = 860, 420  # px of a chart in a PNG, before it is scaled
_PNG_SCALE = 2
_LONG = 40  # characters above which a table gives a text room


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.4g}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "accuracy": ("accuracy", "{:.4f}".format),
    "clients_failed": ("clients failed", _count),
    "clients_ok": ("clients ok", _count),
    "client_accuracy": ("accuracy, clients' mean", "{:.4f}".format),
    "cpu_seconds": ("CPU, s", "{:,.1f}".format),
    "cpu_share": ("CPU of limit", "{:.0%}".format),
    "cpu_used": ("CPU used, cores", "{:.2f}".format),
    "cpus": ("CPU enforced, cores", _number),
    "cpus_asked": ("CPU asked, cores", _number),
    "data_fraction": ("share of its data", _number),
    "energy_joules": ("energy, J", "{:,.1f}".format),
    "error_seconds": ("late, s", "{:.3f}".format),
    "took_seconds": ("took, s", "{:.3f}".format),
    "examples": ("examples", _count),
    "held_out": ("held out", _count),
    "held_up_seconds": ("others waited for it, s", "{:,.1f}".format),
    "learning_rate": ("learning rate", _number),
    "loss": ("loss", "{:.4f}".format),
    "memory": ("memory enforced, MiB", lambda value: _count(value / _MIB)),
    "memory_asked": ("memory asked, MiB", lambda value: _count(value / _MIB)),
    "memory_installed": ("memory, MiB", _count),
    "memory_limit": ("memory limit, MiB", lambda value: _count(value / _MIB)),
    "memory_mean_bytes": ("memory, mean, MiB", lambda value: f"{value / _MIB:,.1f}"),
    "memory_peak_bytes": ("memory, peak, MiB", lambda value: f"{value / _MIB:,.1f}"),
    "memory_share": ("peak of limit", "{:.0%}".format),
    "model_bytes": ("models moved, MB", lambda value: f"{value / 1e6:,.2f}"),
    "monitoring_cpu": ("CPU, mean, % of a core", lambda value: f"{100 * value:.2f}"),
    "monitoring_cpu_peak": ("CPU, peak, % of a core", lambda value: f"{100 * value:.2f}"),
    "received_bytes": ("received, MB", lambda value: f"{value / 1e6:,.2f}"),
    "reply_seconds": ("until the reply, mean, s", "{:,.1f}".format),
    "seconds": ("time, s", "{:,.1f}".format),
    "sent_bytes": ("sent, MB", lambda value: f"{value / 1e6:,.2f}"),
    "server_accuracy": ("accuracy, global model", "{:.4f}".format),
    "server_loss": ("loss, global model", "{:.4f}".format),
    "temperature_celsius": ("hottest, °C", "{:.1f}".format),
    "throttled_seconds": ("held back by the limit, s", "{:,.1f}".format),
    "train_loss": ("loss in training", "{:.4f}".format),
    "train_seconds": ("training loop, mean, s", "{:,.1f}".format),
    "waited_seconds": ("waited for others, mean, s", "{:,.1f}".format),
}
"""What a column is called on the page, with its unit, and how a value of it is written."""


@dataclass(frozen=True)
class Table:
    """Rows to read; the CSV has them under the columns' own names, in seconds and bytes."""

    name: str
    title: str
    frame: pd.DataFrame

    @property
    def heads(self) -> list[str]:
        """The headings, with units."""
        return [COLUMNS[column][0] if column in COLUMNS else str(column).replace("_", " ") for column in self.frame]

    @property
    def kinds(self) -> list[str]:
        """What each column holds, which says how it is set: number, time, long, or empty for short words."""
        return [_kind(self.frame[column]) for column in self.frame]

    @property
    def cells(self) -> list[list[str]]:
        """The values as the page shows them."""
        columns = [str(column) for column in self.frame]
        return [
            [cell(column, value) for column, value in zip(columns, row, strict=True)]
            for row in self.frame.itertuples(index=False, name=None)
        ]


@dataclass(frozen=True)
class Figure:
    """A chart: a Vega-Lite specification without width, and its rows. Two `half` ones stand side by side."""

    name: str
    title: str
    words: str
    spec: dict[str, Any]
    frame: pd.DataFrame
    half: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph, or with `code` lines to be typed."""

    words: str
    code: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    blocks: Sequence[Table | Figure | Text]


@dataclass(frozen=True)
class Tile:
    """A figure to see first; `mood` is good, bad or empty."""

    label: str
    value: str
    detail: str = ""
    mood: str = ""


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    lead: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)


def cell(column: str, value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if column in COLUMNS and not isinstance(value, str):
        return COLUMNS[column][1](value)
    return _number(value) if isinstance(value, int | float) else str(value)


def _kind(column: "pd.Series[Any]") -> str:
    if pd.api.types.is_datetime64_any_dtype(column):
        return "time"
    if pd.api.types.is_numeric_dtype(column):
        return "" if column.dtype == "bool" else "number"
    return "long" if column.dropna().astype(str).str.len().gt(_LONG).any() else ""


def html(page: Page) -> str:
    """Return the page as a document that loads nothing: scripts, data and charts are in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fltestbed"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["csv_link"] = _csv_link
    return environment.get_template("report.html.j2").render(
        page=page,
        script=_script(),
        specs={
            block.name: {**block.spec, "width": "container", "description": f"{block.title}. {block.words}"}
            for section in page.sections
            for block in section.blocks
            if isinstance(block, Figure)
        },
        kind=lambda block: type(block).__name__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=version("fltestbed"),
    )


def _script() -> str:
    """Return Vega and what it needs. Bundling takes seconds, so it is kept in the cache."""
    kept = cache_dir() / "vega" / f"{_VEGA_LITE}-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")  # would end it where it stands
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_text(script, encoding="utf-8")
        partial.replace(kept)
    return script


def write_files(page: Page, folder: Path) -> None:
    """Write every table and the rows of every chart as CSV, and every chart as PNG."""
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Text):
                continue
            (folder / f"{block.name}.csv").write_text(_csv(block.frame), encoding="utf-8")
            if isinstance(block, Figure):
                width = _HALF_WIDTH if block.half else _WIDTH
                spec = {**block.spec, "width": width, "background": "white"}
                png = vl_convert.vegalite_to_png(json.dumps(spec), vl_version=_VEGA_LITE, scale=_PNG_SCALE)
                (folder / f"{block.name}.png").write_bytes(png)


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ", lineterminator="\n"))


def _csv_link(frame: pd.DataFrame) -> str:
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(_csv(frame).encode()).decode()}"
