"""The charts of reports and comparisons, as Vega-Lite from Altair. Times are seconds since the first round began."""

from typing import Any

import altair as alt
import pandas as pd

from fltestbed.page import Figure

alt.data_transformers.disable_max_rows()

PHASES = {
    "waiting": "#9aa5b1",
    "download": "#4e79a7",
    "training": "#f28e2b",
    "upload": "#59a14f",
    "rest, until the reply": "#edc948",
    "at work, until the reply": "#f28e2b",
    "failed": "#e15759",
    "waits for the others": "#d3d9df",
}
"""What a client is at, with its colour."""
CONDITIONS = {
    "throttle": "#f28e2b",
    "shape": "#4e79a7",
    "pause": "#b07aa1",
    "partition": "#9c755f",
    "kill": "#e15759",
    "reboot": "#59a14f",
}
"""What can be done to a device, with its colour."""
_FEW, _SOME = 10, 20  # names that a legend can tell apart by colour, and that it can list
_TICKS = 12  # at an axis of rounds, at most
_ROW = 26  # px
_CONFIG = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 200},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260},
    "background": "transparent",
}


def figure(name: str, title: str, words: str, chart: Any, frame: pd.DataFrame, half: bool = False) -> Figure:
    """Return a chart that was made with Altair as a part of a page."""
    spec = chart.to_dict()
    spec["config"] = _CONFIG
    return Figure(name, title, words, spec, frame, half)


def lines(
    name: str,
    title: str,
    words: str,
    frame: pd.DataFrame,
    *,
    x: tuple[str, str],
    y: tuple[str, str],
    by: str,
    half: bool = True,
    points: bool = True,
    zero: bool = False,
) -> Figure:
    """Return a line for each value of `by`; `x` and `y` are (column, title)."""
    is_round = x[0] == "round"
    axis = alt.Axis(format="d", values=_ticks(frame["round"])) if is_round else alt.Axis()
    scale = alt.Scale(zero=False, nice=False, padding=8) if is_round else alt.Scale(zero=True)
    chart = (
        alt.Chart(frame)
        .mark_line(point={"size": 30} if points else False, strokeWidth=2)
        .encode(
            x=alt.X(x[0], type="quantitative", title=x[1], scale=scale, axis=axis),
            y=alt.Y(y[0], type="quantitative", title=y[1], scale=alt.Scale(zero=zero, padding=0 if zero else 6)),
            color=_colour(frame, by),
            tooltip=[by, alt.Tooltip(x[0], type="quantitative"), alt.Tooltip(y[0], type="quantitative", format=".4~g")],
        )
        .properties(height=240)
    )
    return figure(name, title, words, chart, frame, half)


def bars(
    name: str,
    title: str,
    words: str,
    frame: pd.DataFrame,
    *,
    x: tuple[str, str],
    y: str,
    colour: Any = None,
    limit: str = "",
) -> Figure:
    """Return a bar for each value of `y`, in the frame's order, with a mark at the column `limit`."""
    base = alt.Chart(frame).encode(y=alt.Y(y, type="nominal", sort=list(dict.fromkeys(frame[y])), title=None))
    what = [alt.Tooltip(column) for column in frame.columns]
    drawn: Any = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X(x[0], type="quantitative", title=x[1]),
        color=colour if colour is not None else alt.value("#4e79a7"),
        tooltip=what,
    )
    if limit and frame[limit].notna().any():
        drawn = drawn + base.mark_tick(color="#e15759", thickness=3, height={"band": 0.9}).encode(
            x=alt.X(limit, type="quantitative"), tooltip=what
        )
    return figure(name, title, words, drawn.properties(height=_height(frame[y])), frame)


def rounds(name: str, title: str, words: str, frame: pd.DataFrame, *, y: tuple[str, str], by: str) -> Figure:
    """Return a bar for each round, coloured by the column `by`."""
    chart = (
        alt.Chart(frame)
        .mark_bar(width={"band": 0.8})
        .encode(
            x=alt.X("round", type="ordinal", title="round", axis=alt.Axis(labelAngle=0, labelOverlap=True, format="d")),
            y=alt.Y(y[0], type="quantitative", title=y[1]),
            color=_colour(frame, by),
            tooltip=[alt.Tooltip(column) for column in frame.columns],
        )
        .properties(height=220)
    )
    return figure(name, title, words, chart, frame)


def stacked(name: str, title: str, words: str, frame: pd.DataFrame, *, x: tuple[str, str]) -> Figure:
    """Return a bar for each client, made of its phases."""
    order = {phase: number for number, phase in enumerate(PHASES)}
    data = frame.assign(order=frame["phase"].map(order))
    chart = (
        alt.Chart(data)
        .mark_bar(height={"band": 0.7})
        .encode(
            x=alt.X(x[0], type="quantitative", title=x[1], stack=True),
            y=alt.Y("client", type="nominal", title=None, sort=list(dict.fromkeys(frame["client"]))),
            color=_phases(frame),
            order=alt.Order("order", type="quantitative"),
            tooltip=["client", "phase", alt.Tooltip(x[0], type="quantitative", format=".1f")],
        )
        .properties(height=_height(frame["client"]))
    )
    return figure(name, title, words, chart, frame)


def timeline(name: str, title: str, words: str, frame: pd.DataFrame, starts: pd.DataFrame) -> Figure:
    """Return a row a client with a bar for each phase from `begin` to `until`, and a line where a round starts."""
    bars = (
        alt.Chart(frame)
        .mark_bar(height={"band": 0.7})
        .encode(
            x=alt.X("begin", type="quantitative", title="time since the first round began, s"),
            x2="until",
            y=alt.Y("client", type="nominal", title=None),
            color=_phases(frame),
            tooltip=[
                "client",
                alt.Tooltip("round", type="quantitative"),
                "phase",
                alt.Tooltip("seconds", type="quantitative", format=".1f"),
                "failure",
            ],
        )
    )
    rules = (
        alt.Chart(starts).mark_rule(color="#7b8794", strokeDash=[3, 3]).encode(x=alt.X("begin", type="quantitative"))
    )
    return figure(name, title, words, (rules + bars).properties(height=_height(frame["client"])), frame)


def conditions(name: str, title: str, words: str, frame: pd.DataFrame, rounds: pd.DataFrame) -> Figure:
    """Return a row a device with what was in force from `begin` to `until`, and a line where a round starts.

    What was not done, or is over at once, is a point. `rounds` has `begin`.
    """
    what: list[Any] = [
        "device",
        "action",
        "text",
        "outcome",
        *(alt.Tooltip(column, format=".3f") for column in ("begin", "until")),
    ]
    base = alt.Chart(frame).encode(
        x=alt.X("begin", type="quantitative", title="time since the first round began, s"),
        y=alt.Y("device", type="nominal", title=None),
        color=_actions(frame),
        tooltip=what,
    )
    bars = base.transform_filter("datum.until > datum.begin").mark_bar(height={"band": 0.7}, opacity=0.85)
    points = base.transform_filter("datum.until <= datum.begin").mark_point(filled=True, size=90)
    shape = alt.Shape("outcome", type="nominal", legend=None)
    rules = (
        alt.Chart(rounds).mark_rule(color="#7b8794", strokeDash=[3, 3]).encode(x=alt.X("begin", type="quantitative"))
    )
    drawn = rules + bars.encode(x2="until") + points.encode(shape=shape)
    return figure(name, title, words, drawn.properties(height=_height(frame["device"])), frame)


def rounds_over_time(name: str, title: str, words: str, rounds: pd.DataFrame, frame: pd.DataFrame) -> Figure:
    """Return a bar a round, as wide and as high as it took, before bands of what was in force meanwhile."""
    x = alt.X("begin", type="quantitative", title="time since the first round began, s")
    bands = alt.Chart(frame).mark_rect(opacity=0.3).encode(x=x, x2="until", color=_actions(frame))
    bars = (
        alt.Chart(rounds)
        .mark_bar(color="#7b8794", stroke="white")
        .encode(
            x=x,
            x2="until",
            y=alt.Y("seconds", type="quantitative", title="time of the round, s"),
            tooltip=["round", alt.Tooltip("seconds", format=".1f"), "conditions"],
        )
    )
    return figure(name, title, words, (bars + bands).properties(height=200), rounds)


def heat(name: str, title: str, words: str, frame: pd.DataFrame) -> Figure:
    """Return how many examples of each label each client has."""
    chart = (
        alt.Chart(frame)
        .mark_rect()
        .encode(
            x=alt.X("label", type="ordinal", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("client", type="nominal", title=None),
            color=alt.Color("examples", type="quantitative", scale=alt.Scale(scheme="blues"), title="examples"),
            tooltip=["client", "label", "examples"],
        )
        .properties(height=_height(frame["client"]))
    )
    return figure(name, title, words, chart, frame)


def _height(names: "pd.Series[Any]") -> int:
    """Return the height, in px, of a chart with a row for each name."""
    return _ROW * int(names.nunique())


def _ticks(rounds: "pd.Series[Any]") -> list[int]:
    """Return the rounds to write at an axis: whole ones, and not so many that they touch."""
    first, last = int(rounds.min()), int(rounds.max())
    return list(range(first, last + 1, (last - first) // _TICKS + 1))


def _phases(frame: pd.DataFrame) -> alt.Color:
    there = [phase for phase in PHASES if phase in set(frame["phase"])]
    return alt.Color(
        "phase",
        type="nominal",
        scale=alt.Scale(domain=there, range=[PHASES[phase] for phase in there]),
        legend=alt.Legend(orient="top", title=None),
    )


def _actions(frame: pd.DataFrame) -> alt.Color:
    there = [action for action in CONDITIONS if action in set(frame["action"])]
    others = sorted(set(frame["action"]) - set(there))
    colours = [*(CONDITIONS[action] for action in there), *("#9aa5b1" for _ in others)]
    scale = alt.Scale(domain=[*there, *others], range=colours)
    return alt.Color("action", type="nominal", scale=scale, legend=alt.Legend(orient="top", title=None))


def _colour(frame: pd.DataFrame, by: str) -> alt.Color:
    names = sorted(set(frame[by].dropna()))
    legend = alt.Legend(orient="top", title=None, columns=5) if len(names) <= _SOME else None
    scheme = "tableau10" if len(names) <= _FEW else "tableau20" if len(names) <= _SOME else "turbo"
    return alt.Color(by, type="nominal", scale=alt.Scale(domain=names, scheme={"name": scheme}), legend=legend)
