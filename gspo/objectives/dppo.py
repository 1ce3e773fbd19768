"""Divergence PPO (DPPO): the clip on the ratio replaced by a mask on the divergence of the chosen token.

Qi et al. 2026, https://arxiv.org/abs/2602.04879

    J(theta) = 1/(sum_i |y_i|) sum_i sum_t M_it sg[min(r_it, cap)] A_i log pi(y_it)              (11)
    M_it     = 0 where A > 0, p > q and D > clip_high, or A < 0, p < q and D > clip_low; else 1   (12)
    tv: D = |p - q|                                                                               (13)
    kl: D = q log(q/p) + (1 - q) log((1 - q)/(1 - p))                                             (14)

p = pi(y_it), q = pi_old(y_it): the chosen token against all others. A rare token's ratio may grow far without moving
any probability, which a ratio clip would forbid. Departures: the paper's recipe divides by a constant (Dr. GRPO); its
top-k divergence, without gain there, is not here. Below the cap the detached ratio has the gradient of the
differentiated one. Certainty: paper, and the authors' code. q should be the sampler's own log-probs (old_logprobs =
"sampler"). verl: loss_mode="dppo_tv" or "dppo_kl" with clip_ratio_low/high (0.15 for tv, 0.05 for kl), its cap
clip_ratio_c (3.0 unless set). TRL: not in 1.16.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gspo.averaging import count, unit_mean
from gspo.objectives.base import Traits
from gspo.ratio import token_log_ratio
from gspo.surrogate import per_unit
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class DPPO:
    name: Literal["dppo"] = "dppo"
    divergence: Literal["tv", "kl"] = "tv"
    """Total variation or KL of the chosen token against the rest; 0.05 is the paper's bound for kl."""
    clip_low: float = 0.15
    """Divergence above which a falling probability is pushed down no further."""
    clip_high: float = 0.15
    """Divergence above which a rising probability is pushed up no further."""
    cap: float = 20.0
    """Largest weight of a token."""

    traits: ClassVar[Traits] = Traits(counts_empty_rows=False, is_derivative=False)
    counts = staticmethod(count)
    weights = staticmethod(unit_mean)  # 1/(sum_i |y_i|) sum_i sum_t

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        ratio = token_log_ratio(scores, step).detach().exp().clamp(max=self.cap)
        is_kept = self._side(scores, step) == 0
        return is_kept * ratio * per_unit(step.advantage, ratio) * scores.logprobs  # (11)

    def _side(self, scores: Scores, step: Step) -> Int[Tensor, "B U"]:
        """+1 where a rise is masked, -1 where a fall is."""  # (12)
        log_ratio = token_log_ratio(scores, step).detach()
        advantage = per_unit(step.advantage, log_ratio)
        distance = self._distance(scores.logprobs.detach().exp(), step.old_logprobs.exp()) * step.mask
        high = (advantage > 0) & (log_ratio > 0) & (distance > self.clip_high)
        return high.long() - ((advantage < 0) & (log_ratio < 0) & (distance > self.clip_low)).long()

    def _distance(self, p: Float[Tensor, "B U"], q: Float[Tensor, "B U"]) -> Float[Tensor, "B U"]:
        if self.divergence == "tv":
            return (p - q).abs()  # (13)
        rest = (1 - q) * torch.log((1 - q + 1e-8) / (1 - p + 1e-8))
        return q * (q.log() - p.log()) + rest  # (14)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        band = min(self.clip_low, self.clip_high)
        return Explanation(
            log_ratio=token_log_ratio(scores, step), bound=self._side(scores, step), level="token", band=band
        )
