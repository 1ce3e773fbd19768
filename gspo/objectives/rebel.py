"""REBEL: regress differences of rewards on differences of log-ratios.

Gao et al. 2024, https://arxiv.org/abs/2404.16767

    D(y) = sum_t log(pi(y_t) / pi_old(y_t))
    L    = mean over pairs of one prompt of ((D(y) - D(y')) - eta (R(y) - R(y')))^2

pi_old is the policy of the iteration; several epochs over the same rollouts (the authors: 4) are how it is meant.
This is the authors' code's form, eta^2 times the paper's. Departures: the paper samples two completions per prompt;
here every pair of a group counts. Certainty: read in the authors' code. TRL, verl: no counterpart.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.explain import explain_ungated
from gspo.groups import all_pairs, known_rewards, row_share
from gspo.objectives.base import GROUP_LOSS, Traits
from gspo.ratio import token_log_ratio
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class REBEL:
    name: Literal["rebel"] = "rebel"
    eta: float = 1.0
    """Size of the step in policy space: the log-ratio that a reward difference of 1 asks for, in nats."""

    traits: ClassVar[Traits] = replace(GROUP_LOSS, needs=("old", "rewards"))

    def counts(self, step: Step) -> Counts:
        return {"pairs": len(all_pairs(step).first)}

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return row_share(step) / max(counts["pairs"], 1)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        log_ratio, pairs = token_log_ratio(scores, step).sum(dim=1), all_pairs(step)
        gap = log_ratio - self.eta * known_rewards(step, scores.logprobs)
        return pairs.to_rows(-(gap[pairs.first] - gap[pairs.second]).square(), like=scores.logprobs)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return explain_ungated(token_log_ratio(scores, step).sum(dim=1, keepdim=True), step, "sequence", band=self.eta)
