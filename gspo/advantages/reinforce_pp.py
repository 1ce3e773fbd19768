"""REINFORCE++: returns per token, whitened over all tokens of the batch.

Hu 2025, https://arxiv.org/abs/2501.03262

    r_it = [t is the last unit] R_i - kl_coef (log pi_old(y_it) - log pi_ref(y_it))              (1)
    G_it = sum_s>=t gamma^(s - t) r_is                                                            (2)
    A_it = (G_it - mean) / sqrt(var + 1e-8)     over all units of the rollout batch               (3)

With gamma = 1 and kl_coef = 0 every token of a row has the same advantage, and [B] is returned; else [B,U].
Departures: none known. Certainty: read in library implementations. verl: reinforce_plus_plus, whose 1e-8 this is. TRL:
RLOOConfig(normalize_advantages=True) is near.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state
from gspo.advantages.statistics import whitened

EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class ReinforcePP:
    name: Literal["reinforce_pp"] = "reinforce_pp"
    gamma: float = 1.0
    """Discount per token of the return."""
    kl_coef: float = 0.0
    """KL (k1) to the reference inside the reward, per token."""

    init = staticmethod(no_state)

    @property
    def traits(self) -> EstimatorTraits:
        needs = (("mask",) if self._is_per_unit else ()) + (("reference",) if self.kl_coef else ())
        return EstimatorTraits(needs=needs, gives_units=self._is_per_unit, min_group=1)

    @property
    def _is_per_unit(self) -> bool:
        return self.gamma != 1 or self.kl_coef != 0

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Tensor, None]:
        reward = batch.total.double()
        is_scored = ~reward.isnan()
        reward = torch.where(is_scored, reward, torch.zeros_like(reward))
        if not self._is_per_unit:
            return whitened(reward, is_scored * batch.length.double(), EPS, is_in_root=True), state
        assert batch.mask is not None
        mask = batch.mask & is_scored[:, None]
        return whitened(self._returns(batch, reward, mask), mask.double(), EPS, is_in_root=True), state  # (3)

    def _returns(
        self, batch: AdvantageInput, reward: Float[Tensor, "B"], mask: Bool[Tensor, "B U"]
    ) -> Float[Tensor, "B U"]:
        units = mask.double()
        left = units.flip(1).cumsum(dim=1).flip(1)
        given = reward[:, None] * ((left == 1) & mask)
        if self.kl_coef:
            assert batch.old_logprobs is not None and batch.reference_logprobs is not None
            gap = (batch.old_logprobs - batch.reference_logprobs).double()
            given = given - self.kl_coef * torch.where(mask, gap, torch.zeros_like(gap))  # (1)
        running = torch.zeros_like(reward)
        returns = torch.zeros_like(units)
        for t in reversed(range(units.shape[1])):  # (2); a masked position passes the return on undiscounted
            running = torch.where(mask[:, t], given[:, t] + self.gamma * running, running)
            returns[:, t] = running * units[:, t]
        return returns
