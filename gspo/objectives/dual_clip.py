"""Dual clip: a floor under what a negative advantage may cost, around any clipped objective.

Ye et al. 2019, https://arxiv.org/abs/1912.09729

    J_dual = max(J, c A) where A < 0, else J,     J the base objective's clipped term, c > 1      (5)

Without it a unit with A < 0 and a large ratio has an unbounded gradient. Departures: none; on GSPO, GSPO-token and
LUSPO the ratio is the sequence's. Certainty: read in library implementations. TRL: delta (caps the ratio before the
min: the same function while delta >= 1 + clip_high). verl: clip_ratio_c, on by default (3.0) in loss_mode="vanilla".
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Discriminator
from torch import Tensor

from gspo.averaging import Counts
from gspo.objectives.base import Traits
from gspo.objectives.dapo import DAPO
from gspo.objectives.dr_grpo import DrGRPO
from gspo.objectives.grpo import GRPO
from gspo.objectives.gspo import GSPO
from gspo.objectives.gspo_token import GSPOToken
from gspo.objectives.luspo import LUSPO
from gspo.surrogate import per_unit
from gspo.types import Explanation, Scores, Step

ClippedObjective = Annotated[GRPO | GSPO | GSPOToken | DrGRPO | DAPO | LUSPO, Discriminator("name")]
"""Objectives with two clip bounds on one ratio."""


@dataclass(frozen=True, kw_only=True)
class DualClip:
    name: Literal["dual_clip"] = "dual_clip"
    base: ClippedObjective = field(default_factory=GRPO)
    """The clipped objective."""
    c: float = 3.0
    """Ratio from which on a negative advantage has no more gradient."""

    def __post_init__(self) -> None:
        if self.c <= 1 + self.base.clip_high:
            raise ValueError(f"dual_clip: c is {self.c}; it must be above 1 + clip_high = {1 + self.base.clip_high}")

    @property
    def traits(self) -> Traits:
        return self.base.traits

    def counts(self, step: Step) -> Counts:
        return self.base.counts(step)

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return self.base.weights(step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        gain = self.base.gain(scores, step)
        advantage = per_unit(step.advantage, gain)
        return torch.where(advantage < 0, torch.maximum(gain, self.c * advantage), gain)  # (5)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        why = self.base.explain(scores, step)
        is_cut = (per_unit(step.advantage, why.log_ratio) < 0) & (why.log_ratio.exp() > self.c)
        return replace(why, bound=torch.where(is_cut, torch.ones_like(why.bound), why.bound))
