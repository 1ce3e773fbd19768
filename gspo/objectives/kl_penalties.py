"""KL penalties: terms that add to an objective, with an averaging of their own.

    loss = -(gain_objective * weight).sum() + coef * mean KL

The KL estimators are those of `gspo.kl`. "token" averages over the step's trained units; "sequence" averages within
each rollout first. TRL's `beta` has the averaging of its loss_type; since 1.16 its default is "unbiased", and k3 is
use_bias_correction_kl=False. verl: kl_loss_coef with kl_loss_type.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts, count
from gspo.kl import KLEstimator, kl_estimate
from gspo.objectives.base import Traits
from gspo.objectives.penalty import Averaging, averaged, penalty_traits
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class ReferenceKL:
    """Penalty coef * KL(policy || reference), estimated on the sampled units (nats)."""

    name: Literal["reference_kl"] = "reference_kl"
    coef: float = 0.04
    """Strength of the penalty; 0.04 is DeepSeekMath's."""
    estimator: KLEstimator = "k3"
    """k1, k2, k3 or unbiased (k3 times the ratio to the old policy)."""
    averaging: Averaging = "sequence"
    """"sequence": mean over rollouts of means over units (GRPO's); "token": mean over units of the step."""

    counts = staticmethod(count)

    @property
    def traits(self) -> Traits:
        return penalty_traits(self.averaging, "reference", *(("old",) if self.estimator == "unbiased" else ()))

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return averaged(self.averaging, step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        assert step.reference_logprobs is not None
        kl = kl_estimate(scores.logprobs, step.reference_logprobs, self.estimator, step.old_logprobs)
        return -self.coef * kl

    def explain(self, scores: Scores, step: Step) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class OldKL:
    """Penalty coef * KL(policy || old policy): a soft trust region around the weights that sampled."""

    name: Literal["old_kl"] = "old_kl"
    coef: float = 1e-3
    """Strength of the penalty; 1e-3 is TRPA's."""
    estimator: KLEstimator = "k3"
    """k1, k2, k3 or unbiased."""
    averaging: Averaging = "token"
    """"sequence" or "token", as in ReferenceKL."""

    counts = staticmethod(count)

    @property
    def traits(self) -> Traits:
        return penalty_traits(self.averaging, "old")

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return averaged(self.averaging, step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        return -self.coef * kl_estimate(scores.logprobs, step.old_logprobs, self.estimator, step.old_logprobs)

    def explain(self, scores: Scores, step: Step) -> None:
        return None
