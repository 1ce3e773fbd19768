"""Geometric-Mean Policy Optimization (GMPO): the geometric mean of clipped token ratios.

https://arxiv.org/abs/2507.20673

    J(theta) = 1/G sum_i w_i A_i,     log w_i = 1/|y_i| sum_t c_it
    c_it     = sign(A_i) min(sign(A_i) d_it, sign(A_i) clip(d_it, -delta, delta)),   d_it = log r_it

So d is capped at +delta where A > 0 and floored at -delta where A < 0. `delta` is in log space, as the paper's 0.4.
Departures: none. Certainty: read in the authors' code and in libraries. A row without tokens adds 0 (elsewhere its
advantage enters the value, with no gradient). verl: loss_mode="geo_mean" (clip_ratio_low/high read as log bounds; its
mean is over the micro-batch's sequences). TRL: trl.experimental.gmpo where present.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio, unit_average
from gspo.surrogate import per_row
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class GMPO:
    name: Literal["gmpo"] = "gmpo"
    delta: float = 0.4
    """Bound of the token log-ratio, on the side that A pushes towards."""

    traits: ClassVar[Traits] = Traits(takes_unit_advantage=False)
    counts = staticmethod(count)
    weights = staticmethod(row_mean)  # 1/G sum_i, repeated over units

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        log_ratio = token_log_ratio(scores, step)
        advantage = per_row(step.advantage, log_ratio, otherwise="GSPOToken")
        is_clipped = self._side(log_ratio, advantage) != 0
        clipped = torch.where(is_clipped, log_ratio.clamp(-self.delta, self.delta), log_ratio)
        return (unit_average(clipped, step).exp() * advantage).expand_as(step.mask)

    def _side(self, log_ratio: Float[Tensor, "B U"], advantage: Float[Tensor, "B 1"]) -> Int[Tensor, "B U"]:
        """+1 where the cap acts, -1 where the floor does."""
        high = (advantage > 0) & (log_ratio > self.delta)
        return high.long() - ((advantage < 0) & (log_ratio < -self.delta)).long()

    def explain(self, scores: Scores, step: Step) -> Explanation:
        log_ratio = token_log_ratio(scores, step)
        advantage = per_row(step.advantage, log_ratio, otherwise="GSPOToken")
        return Explanation(log_ratio=log_ratio, bound=self._side(log_ratio, advantage), level="token", band=self.delta)
