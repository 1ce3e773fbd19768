"""Figures as inline SVG, drawn by hand: an axis, its ticks, a few marks, and the numbers for the readout.

Every figure is 400 units wide, so that one unit is about a pixel in a three-column page and on a phone alike.
Positions of the marks travel in `data-hover`; script.js finds the nearest one and shows its values.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gspo.report.numbers import finite, format_number, log_ticks, nice_ticks, step_ticks, tick_labels

WIDTH, HEIGHT = 400, 212
LEFT, RIGHT, TOP, BOTTOM = 50, 388, 10, 180


@dataclass(frozen=True, kw_only=True)
class Series:
    name: str
    values: Sequence[float]
    color: str = "var(--c1)"
    style: str = "line"
    """"line", "faint" (the raw values behind a smoothed line) or "points" (few values, joined)."""
    readout: Callable[[float], str] = format_number


@dataclass(frozen=True, kw_only=True)
class Band:
    """The area between two series, such as the shortest and the longest completion."""

    low: Series
    high: Series


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What is plotted against the step. `steps` and every series have one length."""

    title: str
    unit: str
    note: str
    """How to read it, in one sentence."""
    steps: Sequence[float]
    series: Sequence[Series]
    band: Band | None = None
    rule: tuple[float, str] | None = None
    """A horizontal reference line and its label."""
    floor: float | None = None
    """Where the axis starts if the data allow; None fits the data."""
    ceiling: float | None = None
    is_percent: bool = False

    @property
    def shown(self) -> list[Series]:
        return [*self.series, *([self.band.low, self.band.high] if self.band else [])]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values to positions."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(chart: Chart) -> str:
    x = step_axis(chart.steps)
    y = _value_axis(chart)
    ticks = log_ticks(y.low, y.high) if y.is_log else nice_ticks(y.low, y.high, 4)
    labels = [format_number(t) for t in ticks] if y.is_log else tick_labels(ticks, percent=chart.is_percent)
    marks = [_band(chart, x, y), *(_series(chart.steps, series, x, y) for series in chart.series)]
    if chart.rule:
        marks.append(_rule(*chart.rule, y))
    hover = hover_data([x.at(step) for step in chart.steps], _step_labels(chart.steps), chart.shown, y)
    body = frame(x, y, list(zip(ticks, labels, strict=True)), step_marks(x)) + "".join(marks)
    return figure(chart.title, chart.unit, chart.note, body, key(chart.shown), hover)


def stacked_chart(chart: Chart) -> str:
    """Each step is a column one step wide, its parts on top of each other; a single step is drawn as well."""
    half = (chart.steps[1] - chart.steps[0]) / 2 if len(chart.steps) > 1 else 0.5
    edges = [chart.steps[0] - half, chart.steps[-1] + half]
    parts = [[value if math.isfinite(value) else 0.0 for value in s.values] for s in chart.series]
    totals = [sum(column) for column in zip(*parts, strict=True)]
    x = Axis(low=edges[0], high=edges[1], start=LEFT, end=RIGHT)
    y = Axis(low=0.0, high=1.05 * max([*totals, 1e-9]), start=BOTTOM, end=TOP)
    marks, base = [], [0.0] * len(totals)
    for series, part in zip(chart.series, parts, strict=True):
        top = [b + value for b, value in zip(base, part, strict=True)]
        marks.append(f'<path d="{_stairs(chart.steps, half, base, top, x, y)}" fill="{series.color}"/>')
        base = top
    ticks = nice_ticks(0.0, y.high, 4)
    hover = hover_data([x.at(step) for step in chart.steps], _step_labels(chart.steps), chart.series, None)
    grid = frame(x, y, list(zip(ticks, tick_labels(ticks), strict=True)), step_marks(x))
    return figure(chart.title, chart.unit, chart.note, grid + "".join(marks), key(chart.series, "box"), hover)


def step_axis(steps: Sequence[float]) -> Axis:
    low, high = min(steps), max(steps)
    # One step has no width of its own: give it half a step on both sides.
    return (
        Axis(low=low, high=high, start=LEFT, end=RIGHT)
        if high > low
        else Axis(low=low - 0.5, high=high + 0.5, start=LEFT, end=RIGHT)
    )


def step_marks(x: Axis) -> list[tuple[float, str]]:
    ticks = step_ticks(math.ceil(x.low), x.high)
    return [(tick, f"{tick:,.0f}") for tick in ticks]


def frame(
    x: Axis, y: Axis, rows: Sequence[tuple[float, str]], columns: Sequence[tuple[float, str]], name: str = "step"
) -> str:
    """Grid lines with their labels, the base line, and the name of the horizontal axis."""
    parts = []
    for value, label in rows:
        at = y.at(value)
        parts.append(f'<path class="line-y" d="M{LEFT} {at}H{RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<path class="base" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    for value, label in columns:
        at = x.at(value)
        parts.append(f'<path class="base" d="M{at} {BOTTOM}v4"/>')
        parts.append(f'<text class="tick" x="{at}" y="{BOTTOM + 16}" text-anchor="middle">{label}</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{BOTTOM + 30}" text-anchor="middle">{name}</text>')
    return "".join(parts)


def figure(title: str, unit: str, note: str, body: str, key: str, hover: str) -> str:
    name = escape(f"{title} ({unit})" if unit else title)
    unit = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    return (
        f'<figure class="chart"><figcaption><span>{escape(title)}{unit}</span>'
        f'<span class="at"></span></figcaption>{key}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}" data-hover=\'{hover}\'>'
        f'{body}</svg><p class="note">{escape(note)}</p></figure>'
    )


def key(series: Sequence[Series], swatch: str = "dash") -> str:
    """Legend and readout in one: the last values until the pointer asks for others."""
    items = []
    for one in series:
        values = finite(one.values)
        value = one.readout(values[-1]) if values else "–"
        kind = {"faint": "thin", "points": "dot"}.get(one.style, swatch)
        items.append(
            f'<span class="item"><i class="{kind}" style="--s:{one.color}"></i>{escape(one.name)} '
            f"<b>{escape(value)}</b></span>"
        )
    return f'<p class="key">{"".join(items)}</p>'


def hover_data(at: Sequence[float], labels: Sequence[str], series: Sequence[Series], y: Axis | None) -> str:
    """Pixel positions and readouts per point; without `y` only the cursor line is shown."""
    place = lambda value: _place(y, value) if y else None  # noqa: E731
    rows = [
        {
            "color": one.color,
            "y": [place(value) for value in one.values],
            "text": [one.readout(value) for value in one.values],
        }
        for one in series
    ]
    return safe_json({"x": list(at), "labels": list(labels), "series": rows})


def safe_json(value: Any) -> str:
    """JSON that is safe inside a script element and inside a single-quoted attribute: nothing in it ends either.

    Escaped as JSON, not as HTML: every quotation mark as `&quot;` would triple the size of a chart.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&']", lambda match: f"\\u{ord(match[0]):04x}", text)


def _place(y: Axis, value: float) -> float | None:
    return y.at(value) if math.isfinite(value) else None


def _step_labels(steps: Sequence[float]) -> list[str]:
    return [f"step {step:,.0f}" for step in steps]


def _value_axis(chart: Chart) -> Axis:
    values = finite(value for series in chart.shown for value in series.values)
    low, high = min(values), max(values)
    if low > 0 and high / low > 50 and chart.floor is None:
        return Axis(low=low / 1.3, high=high * 1.3, start=BOTTOM, end=TOP, is_log=True)
    if chart.rule and low <= chart.rule[0] <= 3 * high:
        high = max(high, chart.rule[0])
    if high == low:
        margin = abs(high) * 0.5 or 0.5
        low, high = (low, high + 2 * margin) if low >= 0 else (low - margin, high + margin)
    if chart.floor is not None:
        low = min(low, chart.floor)
    if chart.ceiling is not None:
        high = max(high, chart.ceiling)
    margin = 0.06 * (high - low)
    is_floored = low in (chart.floor, 0.0)
    is_capped = high == chart.ceiling
    return Axis(low=low - margin * (not is_floored), high=high + margin * (not is_capped), start=BOTTOM, end=TOP)


def _series(steps: Sequence[float], series: Series, x: Axis, y: Axis) -> str:
    runs = _runs(steps, series.values, x, y)
    if series.style == "points":
        # Missing values lie between evaluations; the few that exist are joined.
        runs = [[point for run in runs for point in run]]
    path = "".join("M" + "L".join(f"{px} {py}" for px, py in run) for run in runs if len(run) > 1)
    line = f'<path class="line {series.style}" d="{path}" stroke="{series.color}"/>' if path else ""
    single = [point for run in runs for point in run if series.style == "points" or len(run) == 1]
    dots = "".join(f'<circle cx="{px}" cy="{py}" r="3" fill="{series.color}"/>' for px, py in single)
    return line + dots


def _runs(steps: Sequence[float], values: Sequence[float], x: Axis, y: Axis) -> list[list[tuple[float, float]]]:
    """Stretches without a missing value: a line is broken where there is no number."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if math.isfinite(value):
            runs[-1].append((x.at(step), y.at(value)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _band(chart: Chart, x: Axis, y: Axis) -> str:
    if chart.band is None:
        return ""
    both = zip(chart.steps, chart.band.low.values, chart.band.high.values, strict=True)
    known = [(x.at(s), y.at(a), y.at(b)) for s, a, b in both if math.isfinite(a) and math.isfinite(b)]
    corners = [(px, top) for px, _, top in known] + [(px, bottom) for px, bottom, _ in reversed(known)]
    points = " ".join(f"{px},{py}" for px, py in corners)
    return f'<polygon class="band" points="{points}" fill="{chart.band.high.color}"/>'


def _rule(value: float, label: str, y: Axis) -> str:
    if not y.low <= value <= y.high:
        return ""
    at = y.at(value)
    text = f'<text class="tick" x="{RIGHT}" y="{at - 4}" text-anchor="end">{escape(label)}</text>'
    return f'<path class="rule" d="M{LEFT} {at}H{RIGHT}"/>{text}'


def _stairs(steps: Sequence[float], half: float, low: Sequence[float], high: Sequence[float], x: Axis, y: Axis) -> str:
    along = [(x.at(s - half), x.at(s + half), y.at(a), y.at(b)) for s, a, b in zip(steps, low, high, strict=True)]
    top = "".join(f"V{b}H{right}" for _, right, _, b in along)
    bottom = "".join(f"V{a}H{left}" for left, _, a, _ in reversed(along))
    return f"M{along[0][0]} {along[0][3]}{top}{bottom}Z"
