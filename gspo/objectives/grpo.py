"""Group Relative Policy Optimization (GRPO).

Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300

    J(theta) = 1/G sum_i 1/|y_i| sum_t min(r_it A_it, clip(r_it, 1 - clip_low, 1 + clip_high) A_it)   (3)
    r_it     = pi(y_it | x, y_i<t) / pi_old(y_it | x, y_i<t)

Departures: the paper's KL to the reference (k3, coefficient 0.04) is a term of its own, `ReferenceKL`; the recipe
grpo-deepseekmath adds it. Certainty: equation read in the paper, which gives no clip bound: 0.2 is what libraries use.
TRL: loss_type="grpo", epsilon. verl: loss_mode="vanilla", loss_agg_mode="seq-mean-token-mean".
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.explain import explain_token_clip
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import clipped_surrogate, per_unit
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class GRPO:
    name: Literal["grpo"] = "grpo"
    clip_low: float = 0.2
    """Lower clip of the token ratio."""
    clip_high: float = 0.2
    """Upper clip of the token ratio."""

    traits: ClassVar[Traits] = Traits()
    counts = staticmethod(count)
    weights = staticmethod(row_mean)  # 1/G sum_i 1/|y_i| sum_t
    explain = explain_token_clip

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = token_log_ratio(scores, step).exp()
        return clipped_surrogate(ratio, per_unit(step.advantage, ratio), self.clip_low, self.clip_high)  # (3)
