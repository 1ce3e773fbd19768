"""Direct Preference Optimization (DPO), on the pairs of a group that rewards tell apart.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290

    L    = mean over pairs of -log sigmoid(beta (D(y_w) - D(y_l))),   R(y_w) > R(y_l)            (7)
    D(y) = sum_t log(pi(y_t) / pi_ref(y_t))

Offline pairs are groups of two with rewards 1 and 0; online, every pair of unequal rewards of a group counts.
Departures: none. Certainty: standard. TRL: DPOTrainer, loss_type="sigmoid". verl: no counterpart.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.explain import explain_ungated
from gspo.groups import Pairs, known_rewards, preference_pairs, row_share
from gspo.objectives.base import GROUP_LOSS, Traits
from gspo.ratio import reference_log_ratio
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class DPO:
    name: Literal["dpo"] = "dpo"
    beta: float = 0.1
    """Strength of the implied KL to the reference, per nat."""

    traits: ClassVar[Traits] = replace(GROUP_LOSS, needs=("reference", "rewards"))

    def counts(self, step: Step) -> Counts:
        return {"pairs": len(_pairs(step).first)}

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return row_share(step) / max(counts["pairs"], 1)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        log_ratio, pairs = reference_log_ratio(scores, step).sum(dim=1), _pairs(step)
        margin = self.beta * (log_ratio[pairs.first] - log_ratio[pairs.second])
        return pairs.to_rows(torch.nn.functional.logsigmoid(margin), like=scores.logprobs)  # (7)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return explain_ungated(reference_log_ratio(scores, step).sum(dim=1, keepdim=True), step, "sequence")


def _pairs(step: Step) -> Pairs:
    rewards = known_rewards(step, step.old_logprobs)
    return preference_pairs(step, rewards[:, None] > rewards[None])
