"""Trust Region Preference Approximation (TRPA): preferences between levels of reward, near the old policy.

Su et al. 2025, https://arxiv.org/abs/2504.04524

    q_i = 1/|y_i| sum_t log(pi(y_it) / pi_ref(y_it))                                              (1)
    L   = mean over pairs of -log sigmoid(beta k (q_w - q_l)) + kl_coef mean over tokens of k3(pi, pi_old)   (2)

A pair is two live rows of one group of which w has the better level; k = kappa where w is fully right (level 1), else
1. Level 1 is R >= levels[0], level 2 is R >= levels[1], and so on. A step without any pair falls back to the mean
over rows of -log sigmoid(q_i) for level 1 and -log sigmoid(-q_i) for the others, without beta. Departures: the
authors pair and count inside a micro-batch; here over whole groups, divided by the step's number of pairs, and the
fallback is decided from the step's counts; they clamp k3 at 10 nats per token. Certainty: read in the authors' code
(the paper writes a beta per response); body not read.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gspo.averaging import Counts
from gspo.explain import explain_ungated
from gspo.groups import Pairs, known_rewards, live_rows, preference_pairs, row_share
from gspo.objectives.base import GROUP_LOSS, Traits
from gspo.objectives.kl_penalties import OldKL
from gspo.ratio import reference_log_ratio, unit_average
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class TRPA:
    name: Literal["trpa"] = "trpa"
    levels: tuple[float, ...] = (1.0,)
    """Falling thresholds of the reward; the first is "fully right"."""
    beta: float = 0.1
    """Slope of the preference, per nat of the length-mean log-ratio."""
    kappa: float = 2.5
    """Factor on pairs whose better row is fully right."""
    kl_coef: float = 1e-3
    """Strength of the KL to the old policy, averaged over the step's tokens."""

    traits: ClassVar[Traits] = replace(GROUP_LOSS, needs=("reference", "rewards"), min_group=1)

    @property
    def adds(self) -> tuple[OldKL, ...]:
        return (OldKL(coef=self.kl_coef, averaging="token"),)

    def _pairs(self, step: Step) -> tuple[Int[Tensor, "B"], Pairs]:
        rewards = known_rewards(step, step.old_logprobs)
        level = 1 + sum((rewards < threshold).long() for threshold in self.levels)
        return level, preference_pairs(step, level[:, None] < level[None])

    def counts(self, step: Step) -> Counts:
        return {"pairs": len(self._pairs(step)[1].first), "rows": int(live_rows(step).sum())}

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        if not counts["pairs"]:
            return row_share(step) / max(counts["rows"], 1)
        return row_share(step) * self._is_paired(self._pairs(step)[1], step) / counts["pairs"]

    @staticmethod
    def _is_paired(pairs: Pairs, step: Step) -> Tensor:
        """[B,1] whether the row has a partner; in a step with pairs the others weigh nothing."""
        return torch.zeros_like(step.mask[:, :1]).index_fill(0, torch.cat([pairs.first, pairs.second]), True)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        mean = unit_average(reference_log_ratio(scores, step), step)[:, 0]  # (1)
        level, pairs = self._pairs(step)
        slope = self.beta * torch.where(level[pairs.first] == 1, mean.new_tensor(self.kappa), mean.new_tensor(1.0))
        log_sigmoid = torch.nn.functional.logsigmoid
        paired = pairs.to_rows(log_sigmoid(slope * (mean[pairs.first] - mean[pairs.second])), like=scores.logprobs)
        alone = log_sigmoid(torch.where(level == 1, mean, -mean))[:, None]
        return torch.where(self._is_paired(pairs, step), paired, alone)  # (2)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return explain_ungated(unit_average(reference_log_ratio(scores, step), step), step, "sequence")
