"""Dr. GRPO: GRPO without the two normalisations that bias it (length inside the loss, std in the advantage).

Liu et al. 2025, https://arxiv.org/abs/2503.20783

    J(theta) = 1/B sum_i 1/max_length sum_t min(r_it A_i, clip(r_it, 1 - clip_low, 1 + clip_high) A_i)
    A_i      = R_i - mean of the group

The divisor is a constant (the generation budget). Pair it with `advantage = "group_mean"` (no std). Departures: none.
Certainty: read in library implementations (TRL loss_type="dr_grpo", scale_rewards="none"); verl:
loss_agg_mode="seq-mean-token-sum-norm", with loss_scale_factor or the padded width for max_length; versions of early
2026 forgot to divide by the rollouts.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts, constant_mean, count
from gspo.explain import explain_token_clip
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import clipped_surrogate, per_unit
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class DrGRPO:
    name: Literal["dr_grpo"] = "dr_grpo"
    max_length: int
    """The constant divisor L_max, in tokens: the budget `sampling.max_completion_tokens`."""
    clip_low: float = 0.2
    """Lower clip of the token ratio."""
    clip_high: float = 0.2
    """Upper clip of the token ratio."""

    traits: ClassVar[Traits] = Traits()
    counts = staticmethod(count)
    explain = explain_token_clip

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"dr_grpo: max_length is {self.max_length}; give the completion budget in tokens (>= 1)")

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return constant_mean(step, counts, self.max_length)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = token_log_ratio(scores, step).exp()
        return clipped_surrogate(ratio, per_unit(step.advantage, ratio), self.clip_low, self.clip_high)
