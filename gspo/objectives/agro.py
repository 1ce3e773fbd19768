"""Any-Generation Reward Optimization (AGRO): the regularised reward made equal over a group, whoever sampled it.

Tang et al. 2025, https://arxiv.org/abs/2503.19612

    Q_i     = R_i - beta sum_t log(pi(y_it) / pi_ref(y_it))                                      (1)
    L       = 1/P sum_groups 1/2 1/(G-1) sum_i (Q_i - mean Q)^2 / beta                           (2)

At the optimum of E[R] - beta KL(pi || pi_ref) all Q_i of a prompt are equal, on any data: no importance ratio, no old
log-probs, no advantage. Dividing by beta gives the usual scale of a policy gradient. A group with fewer than two live
rows adds 0 and counts. Certainty: the idea is in the abstract; (2) is our derivation of it. Whether the paper's
on-policy algorithm keeps the score term of the sampling distribution, and its beta, are not known to us: beta = 0.1
is ours. With G = 2, reference = old policy and beta = 1/eta this is REBEL(eta) / (4 eta). TRL, verl: no counterpart.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.explain import explain_ungated
from gspo.groups import group_sum, known_rewards, live_rows, row_share
from gspo.objectives.base import GROUP_LOSS, Traits
from gspo.ratio import reference_log_ratio
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class AGRO:
    name: Literal["agro"] = "agro"
    beta: float = 0.1
    """Strength of the KL to the reference, in units of reward per nat."""

    traits: ClassVar[Traits] = replace(GROUP_LOSS, needs=("reference", "rewards"))

    def counts(self, step: Step) -> Counts:
        return {"groups": int(step.group.unique().numel())}

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return row_share(step) / max(counts["groups"], 1)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        live = live_rows(step).to(scores.logprobs.dtype)
        divergence = reference_log_ratio(scores, step).sum(dim=1)
        value = (known_rewards(step, scores.logprobs) - self.beta * divergence) * live  # (1)
        size = group_sum(live, step.group)
        centred = (value - group_sum(value, step.group) / size.clamp(min=1)) * live
        loss = 0.5 * centred.square() / ((size - 1).clamp(min=1) * self.beta)  # (2)
        return -loss[:, None].expand_as(step.mask)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return explain_ungated(reference_log_ratio(scores, step).sum(dim=1, keepdim=True), step, "sequence")
