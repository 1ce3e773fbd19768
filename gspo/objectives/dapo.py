"""DAPO: decoupled clip and dynamic sampling policy optimization.

Yu et al. 2025, https://arxiv.org/abs/2503.14476

    J(theta) = 1/(sum_i |y_i|) sum_i sum_t min(r_it A_i, clip(r_it, 1 - clip_low, 1 + clip_high) A_i)

The sum of lengths is that of the whole optimizer step. Dynamic sampling (`collector.refill`), the overlong filter
(`collector.drop_truncated`) and the overlong penalty (reward `overlong`) belong to the recipe, not to the loss.
Departures: none. Certainty: read in library implementations. TRL: loss_type="dapo" (where a generation batch feeds
several updates, each is divided by an equal share of the batch's tokens instead of its own); verl:
loss_agg_mode="token-mean".
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, unit_mean
from gspo.explain import explain_token_clip
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import clipped_surrogate, per_unit
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class DAPO:
    name: Literal["dapo"] = "dapo"
    clip_low: float = 0.2
    """Lower clip of the token ratio."""
    clip_high: float = 0.28
    """Upper clip of the token ratio ("clip higher")."""

    traits: ClassVar[Traits] = Traits(counts_empty_rows=False)
    counts = staticmethod(count)
    weights = staticmethod(unit_mean)  # 1/(sum_i |y_i|) sum_i sum_t
    explain = explain_token_clip

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = token_log_ratio(scores, step).exp()
        return clipped_surrogate(ratio, per_unit(step.advantage, ratio), self.clip_low, self.clip_high)
