"""OPO: the baseline of least variance under exact on-policy training.

Hao et al. 2025, https://arxiv.org/abs/2505.23585

    A_i = R_i - b,     b = sum_j |y_j| R_j / sum_j |y_j|     over the group

It is E[|grad|^2 R] / E[|grad|^2] when the squared norm of a sequence's gradient grows with its length, as it does for
token gradients that are orthogonal and of equal norm; sum_i |y_i| A_i = 0. There is no std. Unscored rows leave both
sums; a group without spread, or of one, gets 0. It is derived for one update per rollout batch: the trainer refuses
more unless `off_policy`. Departures: `exponent` weighs with |y|^exponent instead, since token gradients are
correlated in practice. Certainty: read in the authors' code, which has `scope` "batch" too, for REINFORCE++. verl:
adv_estimator="opo" (a group of one keeps A = R there). TRL: no counterpart.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state
from gspo.advantages.statistics import group_statistics
from gspo.groups import group_sum


@dataclass(frozen=True, kw_only=True)
class OPO:
    name: Literal["opo"] = "opo"
    exponent: float = 1.0
    """Power of the length in the baseline's weights; 0 is the plain mean."""
    scope: Literal["group", "batch"] = "group"
    """What the baseline is taken over."""
    off_policy: bool = False
    """Allow several updates per rollout batch, for which the baseline was not derived."""

    init = staticmethod(no_state)

    @property
    def traits(self) -> EstimatorTraits:
        return EstimatorTraits(is_on_policy=not self.off_policy, min_group=2 if self.scope == "group" else 1)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        over = batch.group if self.scope == "group" else torch.zeros_like(batch.group)
        group = group_statistics(batch.total, over)
        usable = group.is_scored & group.has_spread
        reward = torch.where(group.is_scored, batch.total.to(group.mean.dtype), group.mean)
        weight = batch.length.to(reward.dtype).pow(self.exponent) * group.is_scored
        weights = group_sum(weight, over)
        baseline = torch.where(weights > 0, group_sum(weight * reward, over) / weights.clamp(min=1e-12), group.mean)
        return torch.where(usable, reward - baseline, torch.zeros_like(reward)), state
