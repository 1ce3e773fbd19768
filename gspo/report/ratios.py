"""The importance ratio of every sequence in every update, from the ledger: a histogram and a table."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise

import numpy as np

from gspo.report.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Series, figure, frame, hover_data, key
from gspo.report.data import Ledger, Run
from gspo.report.numbers import format_share, nice_ticks, tick_labels
from gspo.report.panels import clip_bounds

_BINS = 64


def ratio_section(run: Run) -> str:
    """Empty when the run kept no ledger."""
    ledger = run.ledger
    if ledger is None or not np.isfinite(ledger.log_ratio).any():
        return ""
    keep, left_out = _informative(ledger)
    ratios = ledger.ratio[keep]
    bounds = clip_bounds(run)
    limits = (1 - bounds[0], 1 + bounds[1]) if bounds else None
    return (
        '<section><h2>Importance ratios</h2><div class="grid">'
        + _histogram(ratios, limits, ledger.is_token_level, left_out)
        + _table(ledger, limits)
        + "</div></section>"
    )


def _informative(ledger: Ledger) -> tuple[np.ndarray, str]:
    """Leaves out the first update where its ratio is 1 by definition: that spike would hide the rest."""
    keep = np.isfinite(ledger.log_ratio)
    first = ledger.update == 0
    is_flat = np.abs(ledger.log_ratio[keep & first]).max(initial=0.0) < 1e-9
    if is_flat and (keep & ~first).any() and first.any():
        return keep & ~first, " Update 0 is left out: its ratio is 1 by definition."
    return keep, ""


def _histogram(ratios: np.ndarray, limits: tuple[float, float] | None, is_token: bool, left_out: str) -> str:
    low, high = np.quantile(ratios, [0.005, 0.995])
    if limits:
        band = limits[1] - limits[0]
        low, high = min(low, limits[0] - 0.4 * band), max(high, limits[1] + 0.4 * band)
    if not high > low:
        low, high = low - 1e-6, high + 1e-6
    edges = _edges(low, high, limits)
    # What lies beyond the axis is counted in the outermost columns.
    counts, _ = np.histogram(np.clip(ratios, edges[0], edges[-1]), edges)
    x = Axis(low=float(edges[0]), high=float(edges[-1]), start=LEFT, end=RIGHT)
    y = Axis(low=0.0, high=1.25 * float(counts.max()), start=BOTTOM, end=TOP)
    rows, columns = nice_ticks(0, y.high, 4), nice_ticks(x.low, x.high, 5)
    labelled = lambda ticks: list(zip(ticks, tick_labels(ticks), strict=True))  # noqa: E731
    marks = [
        frame(x, y, labelled(rows), labelled(columns), "sequence ratio"),
        *(_column(x, y, edges[i], edges[i + 1], int(count), limits) for i, count in enumerate(counts)),
        _limits(x, ratios, limits) if limits else "",
    ]
    note = "π / π_old of a sequence, by the mean of its token log-ratios. "
    if not limits:
        note += "This objective has no bounds on a ratio around 1."
    elif is_token:
        note += "This objective clips single tokens; the bounds are drawn for scale."
    else:
        note += "Below the lower bound a sequence stops being pushed down, above the upper being pushed up."
    total = Series(name="sequences", values=[float(len(ratios))], readout=lambda value: f"{value:,.0f}")
    labels = [f"{a:.6g} to {b:.6g}" for a, b in pairwise(edges)]
    columns_at = [x.at((a + b) / 2) for a, b in pairwise(edges)]
    hover = hover_data(columns_at, labels, [replace(total, values=[float(c) for c in counts])], y)
    return figure("Sequence ratio", "sequences", note + left_out, "".join(marks), key([total]), hover)


def _edges(low: float, high: float, limits: tuple[float, float] | None) -> np.ndarray:
    """Column edges that meet the bounds, so that no column is half inside."""
    if limits is None:
        return np.linspace(low, high, _BINS + 1)
    band = limits[1] - limits[0]
    width = band / max(1, round(_BINS * band / (high - low)))
    # A ratio far from the bounds would need thousands of columns as narrow as the band.
    below = min(int(np.ceil((limits[0] - low) / width)), 2 * _BINS)
    above = min(int(np.ceil((high - limits[0]) / width)), 2 * _BINS)
    return limits[0] + width * np.arange(-below, above + 1)


def _column(x: Axis, y: Axis, left: float, right: float, count: int, limits: tuple[float, float] | None) -> str:
    if not count:
        return ""
    middle = (left + right) / 2
    is_outside = limits is not None and not limits[0] < middle < limits[1]
    at, top = x.at(left), y.at(count)
    size = f'width="{max(x.at(right) - at - 0.5, 0.5):.1f}" height="{BOTTOM - top:.1f}"'
    kind = "outside" if is_outside else "inside"
    return f'<rect class="{kind}" x="{at}" y="{top}" {size}/>'


def _limits(x: Axis, ratios: np.ndarray, limits: tuple[float, float]) -> str:
    below, above = float((ratios < limits[0]).mean()), float((ratios > limits[1]).mean())
    left, right = (x.at(limit) for limit in limits)
    lines = "".join(f'<path class="limit" d="M{at} {TOP}V{BOTTOM}"/>' for at in (left, right))
    words = [
        (LEFT + 2, "start", f"{format_share(below)} below"),
        (RIGHT, "end", f"{format_share(above)} above"),
    ]
    if right - left > 95:
        words.append(((left + right) / 2, "middle", f"{format_share(1 - below - above)} inside"))
    texts = [
        f'<text class="share" x="{at:.1f}" y="{TOP + 9}" text-anchor="{anchor}">{text}</text>'
        for at, anchor, text in words
    ]
    return lines + "".join(texts)


def _table(ledger: Ledger, limits: tuple[float, float] | None) -> str:
    updates = sorted({int(update) for update in ledger.update})
    head = ["update", "sequences", "p01", "median", "p99", "clipped low", "clipped high"]
    rows = "".join(_row(ledger, update) for update in updates)
    what = "tokens" if ledger.is_token_level else "sequences"
    bounds = f"Bounds {limits[0]:.6g} and {limits[1]:.6g}. " if limits else ""
    note = (
        f"{bounds}Clipped: share of {what} that lost their gradient, which takes a ratio beyond a bound "
        "and an advantage that pushes it further."
    )
    return (
        '<figure class="wide"><figcaption>Ratio by update <span class="unit">all steps</span></figcaption>'
        f'<div class="scroll"><table class="numbers">{_cells("th", head)}{rows}</table></div>'
        f'<p class="note">{escape(note)}</p></figure>'
    )


def _row(ledger: Ledger, update: int) -> str:
    rows = (ledger.update == update) & np.isfinite(ledger.log_ratio)
    if not rows.any():
        return ""
    quantiles = np.quantile(ledger.ratio[rows], [0.01, 0.5, 0.99])
    low, high = _clipped(ledger, rows)
    shares = [format_share(low), format_share(high)]
    return _cells("td", [str(update), f"{rows.sum():,}", *(f"{ratio:.5f}" for ratio in quantiles), *shares])


def _clipped(ledger: Ledger, rows: np.ndarray) -> tuple[float, float]:
    if ledger.clipped_low is not None and ledger.clipped_high is not None:
        tokens = max(float(ledger.length[rows].sum()), 1.0)
        return ledger.clipped_low[rows].sum() / tokens, ledger.clipped_high[rows].sum() / tokens
    return float((ledger.bound[rows] == "low").mean()), float((ledger.bound[rows] == "high").mean())


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"
