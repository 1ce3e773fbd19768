"""Maximum likelihood of given completions: the cold start and `gspo sft`.

J(theta) = 1/N sum_i sum_t log pi(y_it | x_i, y_i<t),   N = trained units of the step
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, unit_mean
from gspo.objectives.base import Traits
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class Supervised:
    name: Literal["supervised"] = "supervised"

    traits: ClassVar[Traits] = Traits(
        needs=(), reads_advantage=False, counts_empty_rows=False, skips_zero_advantage=False, is_policy_gradient=False
    )
    counts = staticmethod(count)
    weights = staticmethod(unit_mean)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        return scores.logprobs

    def explain(self, scores: Scores, step: Step) -> None:
        return None
