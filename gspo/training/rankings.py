"""Held-out evaluation of runs on given completions: does the policy prefer the better one? Nothing is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gspo.collectors.offline import OfflineSource
from gspo.policies.trained import TrainedPolicy
from gspo.training.batch import assemble, flatten
from gspo.types import Group

PROMPTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class RankingResult:
    """Over held-out prompts, the completion of highest score against that of lowest."""

    accuracy: float
    """Ranking accuracy (2405.19534): share of prompts whose better completion the policy finds more probable."""
    margin: float
    """Mean of log pi(better) - log pi(worse), in nats."""
    examples: tuple[dict[str, Any], ...]

    @property
    def reward(self) -> float:
        return self.accuracy

    def facts(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "margin": self.margin}


def evaluate_rankings(
    source: OfflineSource, rows: Sequence[Any], policy: TrainedPolicy, examples: int = 8
) -> RankingResult:
    """Scores all completions of the rows; log-probs are sums over tokens, under the run's sampling settings."""
    groups = source.wave(list(enumerate(rows)), 0).groups
    gaps = np.concatenate(
        [_gaps(groups[i : i + PROMPTS_AT_ONCE], policy) for i in range(0, len(groups), PROMPTS_AT_ONCE)]
    )
    shown = tuple(
        {
            "prompt": group.prompt_text,
            "completion": group.rollouts[0].text,
            "answer": "preferred" if gap > 0 else "not preferred",
            "reward": float(gap),
        }
        for group, gap in list(zip(groups, gaps, strict=True))[:examples]
    )
    return RankingResult(accuracy=float((gaps > 0).mean()), margin=float(gaps.mean()), examples=shown)


def _gaps(groups: Sequence[Group], policy: TrainedPolicy) -> np.ndarray:
    """[groups] log pi(best) - log pi(worst)."""
    samples = flatten(groups, torch.zeros(sum(len(group.rollouts) for group in groups)), False)
    sums = policy.logprobs(assemble(samples, policy.network.device)).logprobs.double().sum(dim=1).cpu().numpy()
    found, start = [], 0
    for group in groups:
        scores = np.array([rollout.reward for rollout in group.rollouts])
        own = sums[start : start + len(scores)]
        found.append(own[scores.argmax()] - own[scores.argmin()])
        start += len(scores)
    return np.array(found)
