"""Held-out evaluation with its own sampling settings; the same random streams every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo.collectors.source import GroupSource
from gspo.data import Row

EVALUATION_STEP = -1
"""The step counter of evaluation samples: they never share a random stream with training."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores of some problems, `samples` attempts each."""

    reward: float
    accuracy: float | None
    """Mean exact match over attempts; None when the data has no answer to compare with."""
    correct: np.ndarray | None
    """[problems, samples] bool."""
    rewards: np.ndarray
    """[problems, samples], NaN where unscored."""
    mean_length: float
    clipped_ratio: float
    examples: tuple[dict[str, Any], ...]

    def facts(self) -> dict[str, float]:
        out = {"reward": self.reward, "mean_length": self.mean_length, "clipped_ratio": self.clipped_ratio}
        return out if self.accuracy is None else {"accuracy": self.accuracy, **out}


def evaluate(
    source: GroupSource, rows: Sequence[Row], is_correct: Callable[[str, Row], bool] | None, examples: int = 8
) -> EvaluationResult:
    """Sample `source.group_size` completions for each row, score them, compare them with the answers."""
    groups = source.wave(list(enumerate(rows)), EVALUATION_STEP).groups
    texts = [[source.renderer.answer(r.text) for r in group.rollouts] for group in groups]
    correct = None
    if is_correct is not None:
        correct = np.array([[is_correct(text, row) for text in line] for line, row in zip(texts, rows, strict=True)])
    rewards = np.array([[r.reward for r in group.rollouts] for group in groups])
    every = [r for group in groups for r in group.rollouts]
    shown = tuple(
        {
            "prompt": group.prompt_text,
            "completion": group.rollouts[0].text,
            "answer": str(group.columns["answer"]) if "answer" in group.columns else "",
            "reward": group.rollouts[0].reward,
        }
        for group in groups[:examples]
    )
    scored = rewards[~np.isnan(rewards)]
    return EvaluationResult(
        reward=float(scored.mean()) if scored.size else float("nan"),
        accuracy=None if correct is None else float(correct.mean()),
        correct=correct,
        rewards=rewards,
        mean_length=float(np.mean([len(r.completion.ids) for r in every])),
        clipped_ratio=float(np.mean([r.completion.finish_reason == "length" for r in every])),
        examples=shown,
    )


def pass_at_k(correct: np.ndarray, k: int) -> float:
    """Unbiased pass@k (2107.03374, eq 1): mean over problems of 1 - C(n-c, k) / C(n, k); `correct` is [problems, n]."""
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples per problem, got {n}")
    wrong = n - correct.sum(axis=1)
    # C(w, k) / C(n, k) as a product, so that no large factorial is formed.
    misses = np.ones(len(correct))
    for i in range(k):
        misses *= np.clip((wrong - i) / (n - i), 0, None)
    return float(1 - misses.mean())
