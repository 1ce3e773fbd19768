"""GDPO: several rewards, each normalised within its group before they are added, then whitened over the batch.

Liu et al. 2026, https://arxiv.org/abs/2601.05242

    Z_ik = (R_ik - mean_g R_k) / (std_g R_k + eps)                                               (1)
    Y_i  = sum_k w_k Z_ik                                                                        (2)
    A_i  = (Y_i - mean_batch Y) / (std_batch Y + eps)                                            (3)

Rewards added first and normalised after (GRPO) merge outcomes that (1) keeps apart: of two binary rewards, {(0,0),
(0,1)} and {(0,0), (1,1)} are the same to GRPO and +-0.71 against +-1.41 here before (3). Standard deviations are
unbiased. A missing (NaN) reward leaves its column's statistics and adds 0; a row without any gets 0 and is left out
of (3). Departures: none. Certainty: read in the authors' code and in libraries. TRL: multi_objective_aggregation=
"normalize_then_sum" with reward_weights. verl: adv_estimator="gdpo" whitens over tokens: `whiten = "token"`, eps =
1e-6. Another, unrelated "GDPO" exists.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state
from gspo.advantages.group import centred
from gspo.advantages.statistics import scaled, whitened


@dataclass(frozen=True, kw_only=True)
class GDPO:
    name: Literal["gdpo"] = "gdpo"
    weights: tuple[float, ...] = ()
    """w_k, one per reward function; () takes the rewards' own weights."""
    eps: float = 1e-4
    """Added to both standard deviations (TRL's value)."""
    whiten: Literal["sequence", "token"] = "sequence"
    """Whether (3) counts every sequence once, or every token (so that long answers weigh more in mean and std)."""

    init = staticmethod(no_state)

    @property
    def traits(self) -> EstimatorTraits:
        return EstimatorTraits(reward_columns=len(self.weights))

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        value = self.decoupled(batch)
        weight = (~batch.rewards.isnan()).any(dim=1).to(value.dtype)
        if self.whiten == "token":
            weight = weight * batch.length
        return whitened(value, weight, self.eps), state  # (3)

    def decoupled(self, batch: AdvantageInput) -> Float[Tensor, "B"]:
        """Y_i, before the batch is whitened."""
        columns = []
        for k, weight in enumerate(self._weights(batch)):
            value, group = centred(replace(batch, total=batch.rewards[:, k]))
            columns.append(weight * scaled(value, group.std, self.eps))  # (1)
        return torch.stack(columns).sum(dim=0)  # (2)

    def _weights(self, batch: AdvantageInput) -> list[float]:
        number = batch.rewards.shape[1]
        if self.weights and len(self.weights) != number:
            raise ValueError(f"gdpo has {len(self.weights)} weights for {number} reward functions")
        own = [1.0] * number if batch.reward_weights is None else batch.reward_weights.tolist()
        return list(self.weights) or own
