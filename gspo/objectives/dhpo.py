"""Dynamic Hybrid Policy Optimization (DHPO): token and sequence ratios mixed in one clipped surrogate.

Min et al. 2026, https://arxiv.org/abs/2601.05607

    r~_it = a r_it + (1 - a) s_it                                  s_it as in GSPO-token               (1)
    c_it  = a clip(r_it, token bounds) + (1 - a) clip(s_it, sequence bounds)                           (2)
    mixed:    J = 1/G sum_i 1/|y_i| sum_t min(r~_it A_i, c_it A_i)                                     (3)
    separate: J = 1/G sum_i 1/|y_i| sum_t a PPO(r_it, A_i) + (1 - a) PPO(s_it, A_i)                    (4)
    entropy:  a_it = sg[(H_it - min H_i) / (max H_i - min H_i)]                                        (5)

Each ratio is clipped in its own region before mixing. (3) and (4) differ only where the two leave their bands in
opposite directions; a = 1 is GRPO and a = 0 GSPO-token in both. Certainty: the paper's body could not be read.
Mixing, averaged or by entropy, own regions and a single surrogate are in its abstract; (5) is a reader's note. Ours:
the form of s, which of (3), (4) is meant ("mixed" is nearest to the abstract), high entropy favouring the token
ratio, the extremes taken per sequence (a = 1/2 where it has none), all four bounds. TRL, verl: no counterpart.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.explain import explain_by_gradient
from gspo.objectives.base import Traits
from gspo.ratio import sequence_log_ratio, straight_through, token_log_ratio
from gspo.surrogate import clipped_surrogate, per_unit, rescaled_in_row
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class DHPO:
    name: Literal["dhpo"] = "dhpo"
    mixing: float | Literal["entropy"] = 0.5
    """Weight a of the token branch, 0 to 1, or "entropy"."""
    clip_token_low: float = 0.2
    """Lower clip of the token ratio."""
    clip_token_high: float = 0.28
    """Upper clip of the token ratio."""
    clip_sequence_low: float = 3e-4
    """Lower clip of the sequence ratio."""
    clip_sequence_high: float = 4e-4
    """Upper clip of the sequence ratio."""
    reading: Literal["mixed", "separate"] = "mixed"
    """One surrogate of the mixed ratios (3), or two surrogates mixed (4)."""

    counts = staticmethod(count)
    weights = staticmethod(row_mean)

    def explain(self, scores: Scores, step: Step) -> Explanation:
        band = min(self.clip_token_low, self.clip_token_high, self.clip_sequence_low, self.clip_sequence_high)
        return explain_by_gradient(self, scores, step, band)

    @property
    def traits(self) -> Traits:
        return Traits(needs=("old", "entropy") if self.mixing == "entropy" else ("old",), is_derivative=False)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        token = token_log_ratio(scores, step).exp()
        sequence = (sequence_log_ratio(scores, step).detach() + straight_through(scores)).exp()
        advantage, share = per_unit(step.advantage, token), self._share(scores, step)
        if self.reading == "separate":
            by_token = clipped_surrogate(token, advantage, self.clip_token_low, self.clip_token_high)
            by_sequence = clipped_surrogate(sequence, advantage, self.clip_sequence_low, self.clip_sequence_high)
            return share * by_token + (1 - share) * by_sequence  # (4)
        raw = share * token + (1 - share) * sequence  # (1)
        clipped = share * token.clamp(1 - self.clip_token_low, 1 + self.clip_token_high)
        clipped = clipped + (1 - share) * sequence.clamp(1 - self.clip_sequence_low, 1 + self.clip_sequence_high)  # (2)
        return torch.minimum(raw * advantage, clipped * advantage)  # (3)

    def _share(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        if self.mixing == "entropy":
            assert scores.entropy is not None
            return rescaled_in_row(scores.entropy.detach(), step.mask)  # (5)
        return torch.full_like(scores.logprobs, self.mixing)
