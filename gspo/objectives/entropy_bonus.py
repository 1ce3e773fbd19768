"""Entropy bonus: a term that adds to an objective, with an averaging of its own.

    loss = -(gain_objective * weight).sum() - coef * mean entropy

TRL: entropy_coef. verl: entropy_coeff.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts, count
from gspo.objectives.base import Traits
from gspo.objectives.penalty import Averaging, averaged, penalty_traits
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class EntropyBonus:
    """Bonus coef * mean entropy of the next-token distribution (nats), with gradient through the entropy."""

    name: Literal["entropy_bonus"] = "entropy_bonus"
    coef: float = 1e-3
    """Strength of the bonus; negative values penalise entropy."""
    averaging: Averaging = "token"
    """"sequence" or "token", as in ReferenceKL."""

    counts = staticmethod(count)

    @property
    def traits(self) -> Traits:
        return penalty_traits(self.averaging, "entropy_gradient")

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return averaged(self.averaging, step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        assert scores.entropy is not None
        return self.coef * scores.entropy

    def explain(self, scores: Scores, step: Step) -> None:
        return None
