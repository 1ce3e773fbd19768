"""Soft Sequence Policy Optimization (SSPO): soft token gates inside a sequence weight.

Glazyrina, Kryzhanovskiy, Ischenko 2026, https://arxiv.org/abs/2602.19327

    J(theta) = 1/G sum_i w_i A_i,     log w_i = 1/|y_i| sum_t log g(r_it)                        (a)
    sigmoid:  g(r) = 4/tau sigmoid(tau (r - 1))                                                   (b)
    arctan:   log g(r) = arctan(tau log r) / tau                                                  (c)
    identity: g(r) = r, which is GSPO without a clip

Certainty: the paper's body could not be read. That token gates stand inside a sequence weight is in its abstract;
that the weight is their geometric mean, the sigmoid (first version) and the arctan (later default) are from readers'
notes. (a)-(c) in this form, the average over sequences, tau = 1 and `one_sided` are our reconstruction: docs and
results of "SSPO" here are results of that. The sigmoid keeps its raw scale 4/tau: only so is the gradient on-policy
GSPO's, because g(1) (log g)'(1) = 2/tau x tau/2 = 1. TRL, verl: no counterpart.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.explain import explain_ungated
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio, unit_average
from gspo.surrogate import per_row, sigmoid_gate
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class SSPO:
    name: Literal["sspo"] = "sspo"
    gate: Literal["arctan", "sigmoid", "identity"] = "arctan"
    """Gate of the token ratio."""
    tau: float = 1.0
    """Steepness of the gate; the paper's value is not known to us."""
    one_sided: bool = False
    """Gate only the side that a clip would cut (up for A > 0, down for A < 0); the other follows the gate's tangent."""

    traits: ClassVar[Traits] = Traits(takes_unit_advantage=False)
    counts = staticmethod(count)
    weights = staticmethod(row_mean)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        log_ratio = token_log_ratio(scores, step)
        advantage = per_row(step.advantage, log_ratio, otherwise="SAPO")
        gated = self._log_gate(log_ratio)
        if self.one_sided:
            gated = torch.where(log_ratio * advantage > 0, gated, self._tangent(log_ratio))
        weight = unit_average(gated.masked_fill(~step.mask, 0.0), step).exp()  # (a)
        return (weight * advantage).expand_as(step.mask)

    def _log_gate(self, log_ratio: Float[Tensor, "B U"]) -> Float[Tensor, "B U"]:
        if self.gate == "sigmoid":
            return sigmoid_gate(log_ratio.exp(), torch.full_like(log_ratio, self.tau))  # (b)
        return log_ratio if self.gate == "identity" else (self.tau * log_ratio).atan() / self.tau  # (c)

    def _tangent(self, log_ratio: Float[Tensor, "B U"]) -> Float[Tensor, "B U"]:
        """The gate's tangent at ratio 1, in log space."""
        at_one = self._log_gate(torch.zeros_like(log_ratio))
        return at_one + log_ratio * (self.tau / 2 if self.gate == "sigmoid" else 1.0)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return explain_ungated(unit_average(token_log_ratio(scores, step), step), step, "sequence")
