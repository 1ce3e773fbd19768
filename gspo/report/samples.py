"""The completions to read: which steps, which rows, and the JSON that script.js shows.

Everything here was written by a model or came from data: it travels as JSON and is shown as text, never as HTML.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gspo.report.data import Ledger, Run, number, read_table

_STEPS = 8
_ROWS = 16
_PER_GROUP = 8
_PROMPT_CHARACTERS = 700
_HEAD_TOKENS, _TAIL_TOKENS = 64, 32


def sample_data(run: Run) -> dict[str, Any]:
    """Evenly spaced saved steps with up to sixteen completions each, and the scale of the token colours."""
    steps = []
    for path in spread(run.rollouts, _STEPS):
        table = read_table(path)
        if table is not None and table.num_rows:
            steps.append(_step(table.to_pylist(), run.ledger))
    rows = [row for step in steps for row in step["rows"]]
    said = [pair for row in rows for pair in zip(row["log_ratio"], row["chosen"], strict=True)]
    ratios = [abs(ratio) for ratio, is_chosen in said if is_chosen and ratio is not None]
    # The 98th percentile, so that one extreme token does not make all others pale.
    scale = float(np.quantile(ratios, 0.98)) if ratios else 0.0
    return {"steps": steps, "scale": scale or 1.0}


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """`count` items evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _step(rows: list[dict[str, Any]], ledger: Ledger | None) -> dict[str, Any]:
    step = int(rows[0].get("step") or 0)
    fates = _fates(ledger, step)
    parts = [name for name in rows[0] if name.startswith("reward/")]
    chosen = [_row(row, parts, fates.get((row.get("group"), row.get("index")))) for row in _choose(rows)]
    return {"step": step, "total": len(rows), "rows": chosen}


def _choose(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole groups, those whose rewards differ first: the others had no advantage and trained nothing."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get("group"), []).append(row)
    rewards = lambda group: {number(row.get("reward")) for row in group}  # noqa: E731
    ordered = sorted(groups.values(), key=lambda group: len(rewards(group)) < 2)
    chosen: list[dict[str, Any]] = []
    for group in ordered:
        if len(chosen) >= _ROWS:
            break
        stride = math.ceil(len(group) / _PER_GROUP)
        chosen += group[::stride]
    return chosen[:_ROWS]


def _row(row: Mapping[str, Any], parts: Iterable[str], fate: Mapping[str, Any] | None) -> dict[str, Any]:
    tokens = list(row.get("tokens") or [row.get("completion") or ""])
    new, old = row.get("logprobs") or [], row.get("old_logprobs") or []
    ratios = [_difference(a, b) for a, b in zip(new, old, strict=False)][: len(tokens)]
    ratios += [None] * (len(tokens) - len(ratios))
    old = [_rounded(value, 2) for value in old[: len(tokens)]] or [None] * len(tokens)
    chosen = [True] * len(tokens) if row.get("mask") is None else list(row["mask"])[: len(tokens)]
    cut = max(len(tokens) - _HEAD_TOKENS - _TAIL_TOKENS, 0)
    return {
        "group": row.get("group"),
        "index": row.get("index"),
        "prompt": _shortened(row.get("prompt") or "", _PROMPT_CHARACTERS),
        "answer": None if row.get("answer") is None else _shortened(str(row["answer"]), 200),
        "tokens": _without_middle(tokens, cut),
        "chosen": _without_middle(chosen, cut),
        "log_ratio": _without_middle(ratios, cut),
        "old": _without_middle(old, cut),
        "cut": cut,
        "cut_at": _HEAD_TOKENS,
        "reward": _rounded(row.get("reward"), 4),
        "parts": {name.removeprefix("reward/"): _rounded(row.get(name), 4) for name in parts},
        "advantage": _rounded(row.get("advantage"), 4),
        "length": sum(chosen),
        "finish": _finish(row),
        "fate": fate,
    }


def _finish(row: Mapping[str, Any]) -> str | None:
    """How a completion, or a conversation of several turns, ended."""
    turns, ending = row.get("turns") or 1, row.get("ending") or "done"
    if turns == 1 and ending in ("done", "cut"):
        return row.get("finish_reason")
    return f"{ending}, {turns} turn{'' if turns == 1 else 's'}"


def _fates(ledger: Ledger | None, step: int) -> dict[tuple[int, int], dict[str, Any]]:
    """(group, index) -> ratio, bound and share of the gradient in the last update that trained the row."""
    if ledger is None:
        return {}
    rows, ratio = np.flatnonzero(ledger.step == step), ledger.ratio
    clipped = np.zeros_like(ledger.step)
    if ledger.clipped_low is not None and ledger.clipped_high is not None:
        clipped = ledger.clipped_low + ledger.clipped_high
    return {
        (int(ledger.group[i]), int(ledger.index[i])): {
            "update": int(ledger.update[i]),
            "ratio": _rounded(ratio[i], 7),
            "bound": str(ledger.bound[i] or "none"),
            "clipped_tokens": int(clipped[i]),
            "share": _rounded(ledger.gradient_share[i], 4),
        }
        for i in rows[np.argsort(ledger.update[rows], kind="stable")]
    }


def _without_middle(items: list[Any], cut: int) -> list[Any]:
    return items[:_HEAD_TOKENS] + items[len(items) - _TAIL_TOKENS :] if cut else items


def _shortened(text: str, limit: int) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def _difference(new: float | None, old: float | None) -> float | None:
    return None if new is None or old is None else _rounded(new - old, 2)


def _rounded(value: Any, digits: int) -> float | None:
    """`digits` significant digits; None where there is no number, as JSON wants it."""
    value = number(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
