"""GSPO-token: GSPO's sequence ratio with room for an advantage per token.

Zheng et al. 2025, https://arxiv.org/abs/2507.18071, section 4.3

    J(theta) = 1/G sum_i 1/|y_i| sum_t min(s_it A_it, clip(s_it, 1 - clip_low, 1 + clip_high) A_it)   (13)
    s_it     = sg[s_i] pi(y_it) / sg[pi(y_it)]                                                        (14)

With one advantage per sequence the value, the clip condition and the gradient are those of GSPO (a test says so).
Departures: none. Certainty: read in the paper. TRL: trl.experimental.gspo_token where present (not in 1.16). verl:
what loss_mode="gspo" computes, with loss_agg_mode="seq-mean-token-mean".
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.objectives.base import Traits
from gspo.ratio import sequence_log_ratio, straight_through
from gspo.surrogate import bound_hit, clipped_surrogate, per_unit
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class GSPOToken:
    name: Literal["gspo_token"] = "gspo_token"
    clip_low: float = 3e-4
    """Lower clip of the sequence ratio."""
    clip_high: float = 4e-4
    """Upper clip of the sequence ratio."""

    traits: ClassVar[Traits] = Traits(is_derivative=False)
    counts = staticmethod(count)
    weights = staticmethod(row_mean)  # 1/G sum_i 1/|y_i| sum_t

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = (sequence_log_ratio(scores, step).detach() + straight_through(scores)).exp()  # (14)
        return clipped_surrogate(ratio, per_unit(step.advantage, ratio), self.clip_low, self.clip_high)  # (13)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        log_ratio = sequence_log_ratio(scores, step).expand_as(step.mask)
        bound = bound_hit(log_ratio.exp(), per_unit(step.advantage, log_ratio), self.clip_low, self.clip_high)
        band = min(self.clip_low, self.clip_high)
        return Explanation(log_ratio=log_ratio, bound=bound.expand_as(step.mask), level="sequence", band=band)
