"""REINFORCE: the plain policy gradient, with no importance ratio.

Williams 1992, https://doi.org/10.1007/BF00992696; for language models 2402.14740

    J(theta) = 1/G sum_i sum_t A_it log pi(y_it)

With `advantage = "rloo"` this is RLOO as its paper has it. There is no ratio, so the gradient is right at the weights
that sampled and there alone: the trainer refuses more than one update per rollout batch unless `off_policy`.
Departures: `averaging` offers the means of GRPO and DAPO too. TRL: RLOOTrainer at one update per batch.
verl: loss_mode="gpg" (averaging "token").
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts, count, row_mean, row_sum, unit_mean
from gspo.objectives.base import Traits
from gspo.surrogate import per_unit
from gspo.types import Scores, Step

AVERAGES = {"sum": row_sum, "sequence": row_mean, "token": unit_mean}


@dataclass(frozen=True, kw_only=True)
class REINFORCE:
    name: Literal["reinforce"] = "reinforce"
    averaging: Literal["sum", "sequence", "token"] = "sum"
    """Mean over rollouts of the sum over units (the gradient of the expected reward), of their mean, or over units."""
    off_policy: bool = False
    """Allow several updates per rollout batch although nothing corrects for them."""

    counts = staticmethod(count)

    @property
    def traits(self) -> Traits:
        return Traits(
            needs=(),
            counts_empty_rows=self.averaging != "token",
            is_on_policy=not self.off_policy,
        )

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return AVERAGES[self.averaging](step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        return per_unit(step.advantage, scores.logprobs) * scores.logprobs

    def explain(self, scores: Scores, step: Step) -> None:
        return None
