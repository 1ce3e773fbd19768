"""Soft Adaptive Policy Optimization (SAPO): a sigmoid gate on the token ratio in place of the clip.

Gao et al. 2025, https://arxiv.org/abs/2511.20347

    J(theta) = 1/G sum_i 1/|y_i| sum_t f_tau(r_it) A_i                                           (5)
    f_tau(r) = 4/tau sigmoid(tau (r - 1)),   tau = tau_pos where A > 0, else tau_neg             (6)

The weight on grad log pi is r f'(r), f'(r) = sech^2(tau (r - 1) / 2): 1 at r = 1 and never exactly 0; for tau = 1 it
is largest, 1.57, near r = 2. f(1) = 2/tau is not 1, so the loss's value is offset and only gradients compare with a
clip. Departures: none known. Certainty: equations and constants read in several library implementations, not in the
paper. TRL: loss_type="sapo", sapo_temperature_pos/neg. verl: loss_mode="sapo", tau_pos/tau_neg.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.explain import explain_ungated
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import by_sign, per_unit, sigmoid_gate
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class SAPO:
    name: Literal["sapo"] = "sapo"
    tau_pos: float = 1.0
    """Steepness of the gate where the advantage is positive."""
    tau_neg: float = 1.05
    """Steepness where it is not: larger, because lowering one token raises many unsampled ones."""

    traits: ClassVar[Traits] = Traits()
    counts = staticmethod(count)
    weights = staticmethod(row_mean)  # 1/G sum_i 1/|y_i| sum_t

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = token_log_ratio(scores, step).exp()
        advantage = per_unit(step.advantage, ratio)
        tau = by_sign(advantage, self.tau_pos, self.tau_neg)
        return sigmoid_gate(ratio, tau).exp() * advantage  # (5), (6)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return explain_ungated(token_log_ratio(scores, step), step, "token")
