"""Which curves the report shows, and what to say under each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gspo.report.charts import Band, Chart, Series, line_chart, stacked_chart
from gspo.report.data import Line, Run, column, names_under, number
from gspo.report.numbers import finite, format_percent

_PHASES = ("wait", "sample", "reward", "old_logprobs", "update", "evaluate", "save")
_COLORS = tuple(f"var(--c{i})" for i in range(1, 7))
_MOST_POINTS = 300
_CHANGED_BY_UPDATE = (
    "Share of the expert choices of completion tokens that are not those of the old log-probs, by mini-batch inside a "
    "rollout batch; under R2 and R3, what the routers would choose. Above 0 in update 0: sampler and policy differ."
)
_CHANGED_BY_LAYER = (
    "The same share by layer of experts, over the updates behind the first. Later layers see what earlier ones did."
)


@dataclass(frozen=True, kw_only=True)
class _Thinned:
    lines: tuple[Line, ...]
    stride: int
    """Steps per plotted point."""


def panels(run: Run) -> list[str]:
    """The figures for which the run has numbers, in reading order."""
    thinned = thin(run.training)
    lines = thinned.lines
    figures = [
        _reward(lines),
        _held_out(run),
        _clipped(run, lines),
        _entropy(lines),
        _length(lines),
        _gradient(lines),
        _time(lines),
        _side_by_side(lines),
        _lag(lines),
        _mismatch(run, lines),
        _changed_experts(lines, "update", "Changed experts, by update", _CHANGED_BY_UPDATE),
        _changed_experts(lines, "layer", "Changed experts, by layer", _CHANGED_BY_LAYER),
        _moved_by_experts(lines),
        _signal(lines),
        _kl(lines),
    ]
    return [figure for figure in figures if figure]


def thin(lines: Sequence[Line]) -> _Thinned:
    """At most `_MOST_POINTS` lines, each the mean of a stretch of steps: a pixel shows no more."""
    stride = math.ceil(len(lines) / _MOST_POINTS)
    if stride <= 1:
        return _Thinned(lines=tuple(lines), stride=1)
    stretches = [lines[start : start + stride] for start in range(0, len(lines), stride)]
    return _Thinned(lines=tuple(_mean_line(stretch) for stretch in stretches), stride=stride)


def _mean_line(lines: Sequence[Line]) -> Line:
    known = {name: finite(column(lines, name)) for name in names_under(lines, "")}
    means = {name: sum(values) / len(values) for name, values in known.items() if values}
    return means | {"step": lines[len(lines) // 2]["step"]}


def smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of `width` neighbours centred on each value; fewer at the ends, missing values left out."""
    half = width // 2
    windows = [finite(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    return [sum(window) / len(window) if window else math.nan for window in windows]


def _steps(lines: Sequence[Line]) -> list[float]:
    return column(lines, "step")


def _has(lines: Sequence[Line], name: str) -> bool:
    return bool(finite(column(lines, name)))


def _draw(chart: Chart) -> str:
    """Empty when no series has a number."""
    known = [series for series in chart.series if finite(series.values)]
    return line_chart(chart) if known else ""


def _reward(lines: Sequence[Line]) -> str:
    values = column(lines, "reward")
    width = 2 * (len(values) // 30) + 1
    series = [Series(name="reward", values=values, style="faint" if width > 1 else "line")]
    if width > 1:
        series.append(Series(name=f"mean of {width} points", values=smooth(values, width)))
    note = "Mean over all scored completions of the step. It should rise; a jump can be a reward being gamed."
    chart = Chart(title="Reward", unit="", note=note, steps=_steps(lines), series=series, floor=0.0)
    return _draw(chart)


def _held_out(run: Run) -> str:
    lines = [line for line in run.lines if any(name.startswith("eval/") for name in line)]
    sampled = column(lines, "eval/accuracy"), "accuracy", _COLORS[0]
    greedy = column(lines, "eval/greedy_accuracy"), "greedy", _COLORS[1]
    series = [
        Series(name=name, values=values, color=color, style="points", readout=format_percent)
        for values, name, color in (sampled, greedy)
        if finite(values)
    ]
    if series:
        note = "Prompts never trained on. Reward that rises while this does not has learned something else."
        chart = Chart(
            title="Held-out accuracy", unit="%", note=note, steps=_steps(lines), series=series,
            floor=0.0, ceiling=1.0, is_percent=True,
        )  # fmt: skip
        return line_chart(chart)
    reward = Series(name="reward", values=column(lines, "eval/reward"), style="points")
    note = "Mean reward on prompts never trained on."
    return _draw(Chart(title="Held-out reward", unit="", note=note, steps=_steps(lines), series=[reward]))


def _clipped(run: Run, lines: Sequence[Line]) -> str:
    names = sorted(names_under(lines, "clip_ratio/update_"), key=lambda name: int(name.rsplit("_", 1)[1]))
    series = [
        Series(
            name=f"update {name.rsplit('_', 1)[1]}",
            values=column(lines, name),
            color=_shade(i, len(names)),
            readout=format_percent,
        )
        for i, name in enumerate(names)
    ]
    if not series and _has(lines, "clip_ratio/region_mean"):
        values = column(lines, "clip_ratio/region_mean")
        series = [Series(name="all updates", values=values, readout=format_percent)]
    if not clip_bounds(run) and not any(value > 0 for one in series for value in finite(one.values)):
        return ""  # a gate, or a loss on rewards: there is nothing to hit
    what = "tokens" if run.ledger is not None and run.ledger.is_token_level else "sequences"
    note = (
        f"Share of {what} whose gradient a bound took away, by mini-batch inside a rollout batch. "
        "Later updates are further from the sampling policy and clip more; the first should be near 0."
    )
    chart = Chart(
        title="Clipped, by update", unit=f"% of {what}", note=note, steps=_steps(lines), series=series,
        floor=0.0, is_percent=True,
    )  # fmt: skip
    return _draw(chart)


def _shade(index: int, count: int) -> str:
    """Updates are ordered, so their colour is one hue from pale to full."""
    strength = 100 if count == 1 else round(45 + 55 * index / (count - 1))
    return f"color-mix(in oklab, var(--c1) {strength}%, var(--paper))"


def _entropy(lines: Sequence[Line]) -> str:
    series = [Series(name="entropy", values=column(lines, "entropy"), color=_COLORS[2])]
    note = "Mean over completion tokens. A slow fall is learning; a fall to 0 ends exploration, a rise is drift."
    chart = Chart(title="Entropy", unit="nats per token", note=note, steps=_steps(lines), series=series, floor=0.0)
    return _draw(chart)


def _length(lines: Sequence[Line]) -> str:
    mean = Series(name="mean", values=column(lines, "completions/mean_length"), color=_COLORS[3])
    low = Series(name="min", values=column(lines, "completions/min_length"), color=_COLORS[3], style="faint")
    high = Series(name="max", values=column(lines, "completions/max_length"), color=_COLORS[3], style="faint")
    band = Band(low=low, high=high) if finite(low.values) and finite(high.values) else None
    note = "Stop token included; the area spans the shortest and the longest. A maximum on the limit means cut answers."
    chart = Chart(
        title="Completion length", unit="tokens", note=note, steps=_steps(lines), series=[mean], band=band, floor=0.0
    )
    return _draw(chart)


def _gradient(lines: Sequence[Line]) -> str:
    series = [Series(name="gradient norm", values=column(lines, "grad_norm"), color=_COLORS[4])]
    note = "Before norm clipping, mean over the step's updates. Lone peaks are odd batches; a climb is instability."
    return _draw(Chart(title="Gradient norm", unit="", note=note, steps=_steps(lines), series=series, floor=0.0))


def _time(lines: Sequence[Line]) -> str:
    found = [name.removeprefix("time/") for name in names_under(lines, "time/")]
    phases = [name for name in _PHASES if name in found] + [name for name in found if name not in _PHASES]
    if not phases:
        return ""
    series = [
        Series(name=name.replace("_", " "), values=column(lines, f"time/{name}"), color=_COLORS[i % len(_COLORS)])
        for i, name in enumerate(phases)
    ]
    note = "Seconds of each step by phase, stacked. The widest layer is what to make faster."
    return stacked_chart(Chart(title="Time", unit="s per step", note=note, steps=_steps(lines), series=series))


def _side_by_side(lines: Sequence[Line]) -> str:
    rows = (
        ("overlap/sampling", "sampling a batch", 0),
        ("overlap/sampler_idle", "sampler waits", 2),
        ("time/wait", "trainer waits", 1),
    )
    series = [
        Series(name=label, values=column(lines, name), color=_COLORS[color])
        for name, label, color in rows
        if _has(lines, "overlap/sampling") and _has(lines, name)
    ]
    note = "Sampling goes on beside training. The side that never waits is the slower one: give it more."
    title = "Sampling beside training"
    return _draw(Chart(title=title, unit="s per step", note=note, steps=_steps(lines), series=series, floor=0.0))


def _lag(lines: Sequence[Line]) -> str:
    series = [
        Series(name=name, values=column(lines, f"policy_lag/{name}"), color=_COLORS[i])
        for i, name in enumerate(("mean", "max"))
        if _has(lines, f"policy_lag/{name}")
    ]
    note = "By how many steps the weights that sampled a batch were older than those that it trained."
    return _draw(Chart(title="Staleness", unit="steps", note=note, steps=_steps(lines), series=series, floor=0.0))


def _mismatch(run: Run, lines: Sequence[Line]) -> str:
    rows = (("mean", "token mean"), ("seq_std", "sequence std"), ("max", "token max"))
    series = [
        Series(name=label, values=column(lines, f"mismatch/{name}"), color=_COLORS[i])
        for i, (name, label) in enumerate(rows)
        if _has(lines, f"mismatch/{name}")
    ]
    bounds = [bound for bound in clip_bounds(run) if bound > 0]
    note = "Log-probabilities of sampler and policy under equal weights. "
    note += "The sequence std must stay well inside the clip bounds, or noise decides what is clipped."
    chart = Chart(
        title="Sampler mismatch", unit="nats", note=note, steps=_steps(lines), series=series,
        rule=(min(bounds) / 3, "⅓ of the smaller bound") if bounds else None,
    )  # fmt: skip
    return _draw(chart)


def _changed_experts(lines: Sequence[Line], by: str, title: str, note: str) -> str:
    """Share of changed expert choices, one line for each "update" or "layer"."""
    names = sorted(names_under(lines, f"experts/changed/{by}_"), key=_last_number)
    series = [
        Series(
            name=f"{by} {_last_number(name)}",
            values=column(lines, name),
            color=_shade(i, len(names)),
            readout=format_percent,
        )
        for i, name in enumerate(names)
    ]
    chart = Chart(
        title=title, unit="% of choices", note=note, steps=_steps(lines), series=series, floor=0.0, is_percent=True
    )
    return _draw(chart)


def _moved_by_experts(lines: Sequence[Line]) -> str:
    rows = (
        ("token_gap/changed", "token, changed", 0),
        ("token_gap/same", "token, same", 1),
        ("seq_gap/changed", "sequence, more changed", 3),
        ("seq_gap/same", "sequence, fewer", 4),
    )
    series = [
        Series(name=label, values=column(lines, f"experts/{name}"), color=_COLORS[color])
        for name, label, color in rows
        if _has(lines, f"experts/{name}")
    ]
    note = (
        "Mean |log-ratio| of tokens whose experts changed and of those whose did not, and of the half of the sequences "
        "with more changes and the other half. A gap between tokens that is gone between sequences is averaged out."
    )
    title = "Ratios and changed experts"
    return _draw(Chart(title=title, unit="nats", note=note, steps=_steps(lines), series=series, floor=0.0))


def _last_number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])


def _signal(lines: Sequence[Line]) -> str:
    values = column(lines, "frac_reward_zero_std")
    series = [Series(name="groups", values=values, color=_COLORS[5], readout=format_percent)]
    note = "Share of groups with one reward for every completion: nothing to learn. Near 100 %: too easy or too hard."
    chart = Chart(
        title="Groups without signal", unit="% of groups", note=note, steps=_steps(lines), series=series,
        floor=0.0, is_percent=True,
    )  # fmt: skip
    return _draw(chart)


def _kl(lines: Sequence[Line]) -> str:
    values = column(lines, "kl")
    if not any(finite(values)):
        return ""
    series = [Series(name="kl", values=values, color=_COLORS[1])]
    note = "Distance to the reference policy, mean over completion tokens. Measured even where no term uses it."
    return _draw(Chart(title="KL to reference", unit="nats per token", note=note, steps=_steps(lines), series=series))


def clip_bounds(run: Run) -> list[float]:
    """The finite clip bounds around 1 of the objective, or of its base, lower then upper; empty when it has none.

    DPPO's bounds are on a divergence and not drawn.
    """
    objective = run.declared("objective")
    objective = objective if isinstance(objective, dict) else {}
    objective = objective.get("base", objective)
    if objective.get("name") == "dppo":
        return []
    bounds = [number(objective.get(name)) for name in ("clip_low", "clip_high")]
    return bounds if all(map(math.isfinite, bounds)) else []
