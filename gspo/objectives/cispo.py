"""CISPO: REINFORCE weighted by a clipped, detached token ratio; no token loses its gradient.

MiniMax 2025 (MiniMax-M1), https://arxiv.org/abs/2506.13585

    J(theta) = 1/(sum_i |y_i|) sum_i sum_t sg[clip(r_it, 1 - clip_low, 1 + clip_high)] A_i log pi(y_it)

Bounds are distances from ratio 1, as everywhere here. clip_low = 1 means no lower cap; clip_high = 4 caps the ratio
at 5 (ScaleRL 2510.13786; MiniMax states no number). Departures: none known. Certainty: read in library
implementations. TRL: loss_type="cispo", whose epsilon_high is the absolute cap (5.0 there is clip_high = 4 here) and
which has no lower cap. verl: loss_mode="cispo", clip_ratio_low/high as distances, its default lower cap 0.2 active.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, unit_mean
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import per_unit
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class CISPO:
    name: Literal["cispo"] = "cispo"
    clip_low: float = 1.0
    """The weight is at least 1 - clip_low; 1 means no lower cap."""
    clip_high: float = 4.0
    """The weight is at most 1 + clip_high."""

    traits: ClassVar[Traits] = Traits(counts_empty_rows=False, is_derivative=False)
    counts = staticmethod(count)
    weights = staticmethod(unit_mean)  # 1/(sum_i |y_i|) sum_i sum_t

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        weight = token_log_ratio(scores, step).detach().exp().clamp(1 - self.clip_low, 1 + self.clip_high)
        return weight * per_unit(step.advantage, weight) * scores.logprobs

    def explain(self, scores: Scores, step: Step) -> Explanation:
        """`bound` marks capped weights: their gradient is smaller, not gone."""
        log_ratio = token_log_ratio(scores, step)
        ratio, counts = log_ratio.exp(), per_unit(step.advantage, log_ratio) != 0
        bound = ((ratio > 1 + self.clip_high) & counts).long() - ((ratio < 1 - self.clip_low) & counts).long()
        return Explanation(log_ratio=log_ratio, bound=bound, level="token", band=min(self.clip_low, self.clip_high))
