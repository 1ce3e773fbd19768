"""What a task gives to a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig

Row = dict[str, Any]
"""One prompt: "prompt" is text or a list of {"role", "content"} messages; all other keys reach the rewards."""

SPLIT_SEED = 25_071_807
"""Held-out rows are chosen with this seed and never with the run's: runs with different seeds stay comparable."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows to train on, rows never trained on, and how to score them."""

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    rewards: tuple[RewardConfig, ...]
    """The task's own rewards; () where the data does not say, and the run must configure some."""
    is_correct: Callable[[str, Row], bool] | None
    """Whether a completion counts for `accuracy`; None where the data has no answer."""
    reading: str
    """One sentence: how the data was read and split."""
    cold_start: Sequence[Row] = ()
    """Train rows with a "completion", for supervised training before RL."""


class Rows(Sequence):
    """Rows made when they are read: `make(indices[i])`."""

    def __init__(self, indices: Sequence[int], make: Callable[[int], Row]):
        self._indices, self._make = indices, make

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Rows(self._indices[i], self._make)
        return self._make(int(self._indices[i]))


def permutation(seed: int, stream: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1 that is a function of (seed, stream): the ranks of Philox's raw numbers."""
    key = np.array([seed & (2**64 - 1), stream], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def answer_equals(completion: str, row: Row) -> bool:
    """Equality with column `answer`, both stripped of outer whitespace."""
    return completion.strip() == str(row["answer"]).strip()


def option(options: dict[str, Any], name: str, default: Any) -> Any:
    """An option of a task, checked for its type."""
    value = options.get(name, default)
    if type(value) is not type(default):
        raise ValueError(f"task option {name} = {value!r} must be of type {type(default).__name__}")
    return value


def refuse_unknown(task: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """An option that a task does not have is a mistake, not a remark."""
    for name in options:
        if name not in known:
            raise ValueError(f"task {task!r} has no option {name!r}; it has: {', '.join(known) or 'none'}")
