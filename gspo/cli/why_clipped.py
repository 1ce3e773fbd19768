"""`gspo why-clipped`: the ledger of one step in words."""

from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gspo.cli.saved_step import SavedStep, read_saved_step
from gspo.functional import as_terms, explain
from gspo.training.folder import RunFolder

SHOWN = 8
"""Sequences shown for each update."""
TOKENS = 6
"""Clipped tokens shown for each sequence."""


def why_clipped(path: Path, number: int, shown: int = SHOWN) -> list[str]:
    """Lines: the objective and its bounds, then each update: how many were skipped, clipped and why, and which."""
    saved = read_saved_step(path, number)
    ledger = pq.read_table(RunFolder(path).ledger / f"step_{number:06d}.parquet").to_pylist()
    lines = [f"step {number}: {_bounds(saved.objective)}"]
    texts = {(row["group"], row["index"]): row for row in saved.rows}
    tokens = _clipped_tokens(saved)
    for update in sorted({row["update"] for row in ledger}):
        rows = [row for row in ledger if row["update"] == update]
        lines += ["", *_update(update, rows)]
        ranked = sorted((r for r in rows if _is_clipped(r)), key=lambda r: -abs(r["log_ratio"]))
        for row in ranked[:shown]:
            key = (row["group"], row["index"])
            lines += [f"  {_sequence(row)}: {_head(texts[key])}", *tokens.get(key, [])]
        if len(ranked) > shown:
            lines.append(f"  and {len(ranked) - shown} more (--show N)")
    return lines


def _bounds(objective: Any) -> str:
    if objective is None:
        return "an objective given from Python"
    fields = {k: v for k, v in vars(objective).items() if k != "name"}
    settings = ", ".join(f"{key} = {value}" for key, value in fields.items())
    return f"objective {objective.name}" + (f" with {settings}" if settings else "")


def _is_clipped(row: dict[str, Any]) -> bool:
    return row["bound"] != "none" or bool(row.get("clipped_low", 0) or row.get("clipped_high", 0))


def _update(update: int, rows: Sequence[dict[str, Any]]) -> list[str]:
    live = [row for row in rows if not row["skipped"]]
    out = [f"update {update}: {len(rows)} sequences, {len(rows) - len(live)} skipped because their advantage is 0"]
    if not live:
        return [*out, "  nothing had a gradient; the weights did not move"]
    if "clipped_low" in rows[0]:
        tokens = sum(row["length"] for row in live)
        low, high = (sum(row[side] for row in live) for side in ("clipped_low", "clipped_high"))
        out.append(
            f"  {low + high} of {tokens} tokens clipped ({(low + high) / tokens:.1%}): {high} had risen past the upper "
            f"bound, {low} had fallen past the lower"
        )
    else:
        low, high = (sum(row["bound"] == side for row in live) for side in ("low", "high"))
        out.append(
            f"  {low + high} of {len(live)} sequences clipped ({(low + high) / len(live):.1%}): {high} good ones had "
            f"already risen past the upper bound, {low} bad ones fallen past the lower"
        )
    biggest = max(abs(row["log_ratio"]) for row in live)
    if biggest == 0:
        out.append("  every ratio is exactly 1: these are the weights that sampled")
    if low + high == len(live) and "clipped_low" not in rows[0]:
        out.append("  all of them: this update had no gradient. Fewer updates per rollout batch, or wider bounds")
    return out


def _sequence(row: dict[str, Any]) -> str:
    side = {
        "high": "it is good and already likelier than the upper bound allows: no more push up",
        "low": "it is bad and already unlikelier than the lower bound allows: no more push down",
        "none": f"{row.get('clipped_high', 0)} tokens above, {row.get('clipped_low', 0)} below their bound",
    }[row["bound"]]
    return (
        f"group {row['group']} completion {row['index']}, {row['length']} tokens, advantage {row['advantage']:+.2f}, "
        f"sequence ratio {exp(row['log_ratio']):.5f}, {row['gradient_share']:.1%} of the update's gradient; {side}"
    )


def _head(row: dict[str, Any]) -> str:
    text = " ".join(row["completion"].split())
    return repr(text if len(text) <= 50 else text[:47] + "...")


def _clipped_tokens(saved: SavedStep) -> dict[tuple[int, int], list[str]]:
    """For token ratios: which tokens were cut, with their ratio, by (group, index)."""
    objective = saved.objective
    if objective is None:
        return {}
    needs = {need for term in as_terms(objective) for need in term.traits.needs}
    if "reference" in needs and saved.step.reference_logprobs is None:
        return {}
    why = explain(as_terms(objective), saved.scores, saved.step)
    if why.level == "sequence":
        return {}
    found: dict[tuple[int, int], list[str]] = {}
    for i, row in enumerate(saved.rows):
        units = ((why.bound[i] != 0) & saved.step.mask[i]).nonzero()[:, 0].tolist()
        if units:
            parts = [f"{row['tokens'][t]!r} x{why.log_ratio[i, t].exp():.3f}" for t in units[:TOKENS]]
            more = f" and {len(units) - TOKENS} more" if len(units) > TOKENS else ""
            found[row["group"], row["index"]] = [f"      tokens: {', '.join(parts)}{more}"]
    return found
