"""What a reward is, how it is configured, and what scoring gives back."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gspo.types import RewardStatus

FAILED: tuple[RewardStatus, ...] = ("error", "timeout", "nan")
"""Statuses that mean a score was wanted and did not come; "none" means the reward does not apply to the row."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """One reward function of a run. Exactly one of `name` and `function` is set."""

    name: str = ""
    """A built-in reward: exact, numeric, math, regex, format, length, overlong, repetition, reasoning_gym, ..."""
    function: str = ""
    """Your own function, as path/to/file.py:function."""
    weight: float = 1.0
    """Factor of this reward in the weighted sum."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward, such as tolerance = 0.01 for numeric."""
    timeout: float = 30.0
    """Seconds before scoring is given up: for one row of a function scored row by row, else for one whole call."""
    workers: int = 1
    """Processes that score rows side by side (row-by-row functions that run outside this process)."""
    label: str = ""
    """Name in metrics and reports; empty takes the reward's own name."""

    def __post_init__(self):
        if bool(self.name) == bool(self.function):
            raise ValueError(
                f"a reward needs exactly one of name and function, got name={self.name!r} and "
                f"function={self.function!r}: set name to a built-in, or function to path/to/file.py:function"
            )
        if not np.isfinite(self.weight):
            raise ValueError(f"reward weight = {self.weight} is not a finite number")
        if not self.timeout > 0:
            raise ValueError(f"reward timeout = {self.timeout} must be more than 0 seconds")
        if self.workers < 1:
            raise ValueError(f"reward workers = {self.workers} must be at least 1")


class RewardFunction(Protocol):
    """The primary signature (TRL's): everything by keyword, one list entry per row, sync or async.

    `completions` holds strings where the prompt is a string, and [{"role": "assistant", "content": text}] where
    it is a list of messages. Every column of the data arrives as a list; None means "does not apply".
    """

    def __call__(
        self, *, prompts: list, completions: list, completion_ids: list[list[int]], **columns: list
    ) -> list[float | None] | Awaitable[list[float | None]]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Scores of B rows by K reward functions.

    A part that does not apply ("none") is left out of its row's sum. A part that failed ("error", "timeout",
    "nan") makes the whole row's total NaN: a sum without it would compare with other sums as if it were 0.
    """

    names: tuple[str, ...]
    """[K] labels of the rewards."""
    values: np.ndarray
    """[B,K] float64, NaN where there is no score."""
    statuses: list[list[RewardStatus]]
    """[B][K] what became of each score."""
    total: np.ndarray
    """[B] weighted sum; NaN where a part failed or no part applied."""
    errors: list[str]
    """Distinct messages of failed scores, the first of each, with the reward's label and the prompt's head."""


def joined(parts: Sequence[Scored]) -> Scored:
    """One wave's scores from those of its parts."""
    return Scored(
        names=parts[0].names,
        values=np.concatenate([part.values for part in parts]),
        statuses=[row for part in parts for row in part.statuses],
        total=np.concatenate([part.total for part in parts]),
        errors=list(dict.fromkeys(error for part in parts for error in part.errors)),
    )


def side_by_side(parts: Sequence[Scored], weights: np.ndarray) -> Scored:
    """Scores of the same rows by other rewards as one; `weights` of all of them."""
    values = np.concatenate([part.values for part in parts], axis=1)
    statuses = [[status for part in parts for status in part.statuses[row]] for row in range(len(values))]
    return Scored(
        names=tuple(name for part in parts for name in part.names),
        values=values,
        statuses=statuses,
        total=weighted_total(values, statuses, weights),
        errors=[error for part in parts for error in part.errors],
    )


def weighted_total(values: np.ndarray, statuses: list[list[RewardStatus]], weights: np.ndarray) -> np.ndarray:
    """sum_k w_k r_bk over the parts with status "ok"; NaN for rows with a failed part or with none that applied."""
    status = np.array(statuses, dtype=object).reshape(values.shape)
    scored = status == "ok"
    total = np.where(scored, values * weights, 0.0).sum(axis=1)
    unusable = np.isin(status, FAILED).any(axis=1) | ~scored.any(axis=1)
    return np.where(unusable, np.nan, total)


class RewardFailure(ValueError):
    """Too many scores failed for the run to go on."""


def check_failures(scored: Scored, limit: float, but: Sequence[str] = ()) -> None:
    """Raises RewardFailure when, for any reward, more than `limit` (a share, 0..1) of its scores failed.

    Rewards named in `but` are not looked at.
    """
    for k, name in enumerate(scored.names):
        if name in but:
            continue
        column = [row[k] for row in scored.statuses]
        counts = {status: column.count(status) for status in FAILED if status in column}
        failed = sum(counts.values())
        if failed > limit * len(column):
            kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
            first = next((error for error in scored.errors if error.startswith(f"{name}: ")), "no message")
            raise RewardFailure(
                f"reward {name!r}: {failed} of {len(column)} scores failed ({failed / len(column):.1%}: {kinds}), "
                f"more than the limit of {limit:.1%}; first: {first}"
            )
