"""Terms that add to an objective: a KL penalty and an entropy bonus, each with its own averaging.

    loss = -(gain_objective * weight).sum() + kl_coef * mean KL - entropy_coef * mean entropy

The KL estimators are those of `gspo.kl`. "token" averages over the step's trained units; "sequence" averages within
each rollout first. TRL's `beta` has the averaging of its loss_type; since 1.16 its default is "unbiased", and k3 is
use_bias_correction_kl=False. verl: kl_loss_coef with kl_loss_type.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts, count, row_mean, unit_mean
from gspo.kl import KLEstimator, kl_estimate
from gspo.objectives.base import Need
from gspo.types import Scores, Step

Averaging = Literal["sequence", "token"]


def _weights(averaging: Averaging, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
    return row_mean(step, counts) if averaging == "sequence" else unit_mean(step, counts)


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

    needs: ClassVar[tuple[Need, ...]] = ("reference",)
    is_inert_at_zero_advantage: ClassVar[bool] = False
    counts = staticmethod(count)

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return _weights(self.averaging, step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        assert step.reference_logprobs is not None
        kl = kl_estimate(scores.logprobs, step.reference_logprobs, self.estimator, step.old_logprobs)
        return -self.coef * kl

    def explain(self, scores: Scores, step: Step) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class EntropyBonus:
    """Bonus coef * mean entropy of the next-token distribution (nats), with gradient through the entropy."""

    name: Literal["entropy_bonus"] = "entropy_bonus"
    coef: float = 1e-3
    """Strength of the bonus; negative values penalise entropy."""
    averaging: Averaging = "token"
    """"sequence" or "token", as in ReferenceKL."""

    needs: ClassVar[tuple[Need, ...]] = ("entropy",)
    is_inert_at_zero_advantage: ClassVar[bool] = False
    counts = staticmethod(count)

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return _weights(self.averaging, step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        assert scores.entropy is not None
        return self.coef * scores.entropy

    def explain(self, scores: Scores, step: Step) -> None:
        return None
