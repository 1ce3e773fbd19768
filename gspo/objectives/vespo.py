"""VESPO: REINFORCE weighted by a smooth, detached function of the whole sequence's importance ratio.

https://arxiv.org/abs/2602.10693

    J(theta) = 1/(sum_i |y_i|) sum_i sum_t sg[phi(W_i)] A_i log pi(y_it)
    W_i      = exp(sum_t log_ratio_it)               the product, not GSPO's geometric mean
    phi(W)   = exp(lambda) W^k exp(-lambda W),       (k, lambda) by the sign of A_i

phi(1) = 1; it is largest at W = k/lambda. Token log-ratios are clamped to +-20 and their sum to [log 1e-8, 20].
Departures: a correction for the sampler's mismatch multiplies phi, where the authors put it inside W. Certainty: read
in the authors' code, whose docstring names other defaults, and in libraries. TRL: loss_type="vespo", vespo_k_pos,
vespo_lambda_pos and so on. verl: no counterpart.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, unit_mean
from gspo.explain import explain_ungated
from gspo.objectives.base import Traits
from gspo.ratio import bounded, token_log_ratio
from gspo.surrogate import by_sign, per_row
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class VESPO:
    name: Literal["vespo"] = "vespo"
    k_pos: float = 2.0
    """Exponent of W where the advantage is positive."""
    lambda_pos: float = 3.0
    """Decay in W where the advantage is positive."""
    k_neg: float = 3.0
    """Exponent of W where it is not."""
    lambda_neg: float = 2.0
    """Decay in W where it is not."""

    traits: ClassVar[Traits] = Traits(takes_unit_advantage=False, counts_empty_rows=False, is_derivative=False)
    counts = staticmethod(count)
    weights = staticmethod(unit_mean)  # 1/(sum_i |y_i|) sum_i sum_t

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        log_weight = self._log_product(scores, step).detach()
        advantage = per_row(step.advantage, log_weight, otherwise="CISPO")
        # The authors count A = 0 as positive; its gain is 0 either way.
        k = by_sign(advantage, self.k_pos, self.k_neg)
        decay = by_sign(advantage, self.lambda_pos, self.lambda_neg)
        phi = (decay + k * log_weight - decay * log_weight.exp()).exp()
        return phi * advantage * scores.logprobs

    def _log_product(self, scores: Scores, step: Step) -> Float[Tensor, "B 1"]:
        return bounded(token_log_ratio(scores, step)).sum(dim=1, keepdim=True).clamp(math.log(1e-8), 20.0)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        width = 1 / max(self.k_pos, self.lambda_pos, self.k_neg, self.lambda_neg)
        return explain_ungated(self._log_product(scores, step), step, "sequence", band=width)
