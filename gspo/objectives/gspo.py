"""Group Sequence Policy Optimization (GSPO).

Zheng et al. 2025, https://arxiv.org/abs/2507.18071

    J(theta) = 1/G sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)          (5)
    s_i      = (pi(y_i|x) / pi_old(y_i|x))^(1/|y_i|) = exp(1/|y_i| sum_t log_ratio_it)      (7)

Departures: none. Certainty: read in the paper; the bounds are those of its section 5.1. TRL:
importance_sampling_level="sequence" with loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, beta=0. verl:
policy_loss.loss_mode="gspo", clip_ratio_low/high, and loss_agg_mode="seq-mean-token-mean": its default, token-mean,
weighs sequences by length.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.explain import explain_sequence_clip
from gspo.objectives.base import Traits
from gspo.ratio import sequence_log_ratio
from gspo.surrogate import clipped_surrogate, per_row
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class GSPO:
    name: Literal["gspo"] = "gspo"
    clip_low: float = 3e-4
    """Lower clip of the sequence ratio: no gradient below 1 - clip_low where the advantage is negative."""
    clip_high: float = 4e-4
    """Upper clip of the sequence ratio: no gradient above 1 + clip_high where the advantage is positive."""

    traits: ClassVar[Traits] = Traits(takes_unit_advantage=False)
    counts = staticmethod(count)
    weights = staticmethod(row_mean)  # 1/G sum_i, the value of a sequence repeated over its units
    explain = explain_sequence_clip

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = sequence_log_ratio(scores, step).exp()  # (7)
        advantage = per_row(step.advantage, ratio, otherwise="GSPOToken")
        value = clipped_surrogate(ratio, advantage, self.clip_low, self.clip_high)  # (5)
        return value.expand_as(step.mask)
