"""LUSPO: GSPO with each sequence's loss times its length, which takes away the pressure towards short answers.

https://arxiv.org/abs/2602.05261

    J(theta) = 1/G sum_i |y_i| min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i),   s_i as in GSPO

Departures: none known. Certainty: read in library implementations. TRL: loss_type="luspo" with
importance_sampling_level="sequence". verl: loss_mode="gspo" with loss_agg_mode="seq-mean-token-sum".
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_sum
from gspo.explain import explain_sequence_clip
from gspo.objectives.base import Traits
from gspo.ratio import sequence_log_ratio
from gspo.surrogate import clipped_surrogate, per_row
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class LUSPO:
    name: Literal["luspo"] = "luspo"
    clip_low: float = 2e-3
    """Lower clip of the sequence ratio."""
    clip_high: float = 2.5e-3
    """Upper clip of the sequence ratio."""

    traits: ClassVar[Traits] = Traits(takes_unit_advantage=False)
    counts = staticmethod(count)
    weights = staticmethod(row_sum)  # 1/G sum_i sum_t: the value of a sequence |y_i| times
    explain = explain_sequence_clip

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = sequence_log_ratio(scores, step).exp()
        advantage = per_row(step.advantage, ratio, otherwise="GSPOToken")
        return clipped_surrogate(ratio, advantage, self.clip_low, self.clip_high).expand_as(step.mask)
