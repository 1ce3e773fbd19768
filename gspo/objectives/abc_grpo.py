"""Adaptive-Boundary-Clipping GRPO (ABC-GRPO): four clip bounds, one for each sign of the advantage and each side.

Liu, Chen 2026, https://arxiv.org/abs/2601.03895

    J(theta) = 1/G sum_i 1/|y_i| sum_t r~_it A_i
    r~_it    = clip(r_it, 1 - eps2, 1 + eps1) where A_i > 0, else clip(r_it, 1 - eps4, 1 + eps3)

There is no min: outside its band a token has no gradient on either side, which also drops PPO's corrective gradients
(A > 0 with small r, A < 0 with large r). eps1 = eps4 = eps, eps3 = c - 1, eps2 = 1 is PPO with a dual clip at c. The
bounds keep the paper's numbering. Departures: none. Certainty: equation read in the paper. Its advantage has no std
(`advantage = "group_mean"`), its released configuration divides by it, and leaves its host's average over tokens; the
average over sequences here is the paper's. TRL, verl: no counterpart.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import by_sign, per_unit
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class ABCGRPO:
    name: Literal["abc_grpo"] = "abc_grpo"
    eps1: float = 0.2
    """Upper bound where A > 0."""
    eps2: float = 0.2
    """Lower bound where A > 0."""
    eps3: float = 0.2
    """Upper bound where A <= 0."""
    eps4: float = 0.2
    """Lower bound where A <= 0."""

    traits: ClassVar[Traits] = Traits()
    counts = staticmethod(count)
    weights = staticmethod(row_mean)  # 1/G sum_i 1/|y_i| sum_t

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = token_log_ratio(scores, step).exp()
        advantage = per_unit(step.advantage, ratio)
        return torch.clamp(ratio, *self._band(advantage)) * advantage

    def _band(self, advantage: Float[Tensor, "B #U"]) -> tuple[Tensor, Tensor]:
        low, high = by_sign(advantage, self.eps2, self.eps4), by_sign(advantage, self.eps1, self.eps3)
        return 1 - low, 1 + high

    def explain(self, scores: Scores, step: Step) -> Explanation:
        log_ratio = token_log_ratio(scores, step)
        advantage = per_unit(step.advantage, log_ratio)
        low, high = self._band(advantage)
        bound = (log_ratio.exp() > high).long() - (log_ratio.exp() < low).long()
        band = min(self.eps1, self.eps2, self.eps3, self.eps4)
        return Explanation(log_ratio=log_ratio, bound=bound * (advantage != 0), level="token", band=band)
