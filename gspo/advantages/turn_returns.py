"""Advantages per turn: what came after a turn, against the same turn of the group's other rollouts.

After the idea of turn-level credit in groups of Zeng et al. 2025, https://arxiv.org/abs/2505.11821

    r_it = the environment's reward of turn t; of the last turn also what the total has beyond all turns' rewards    (1)
    G_it = sum_s>=t gamma^(s - t) r_is                                                                             (2)
    A_it = (G_it - mean_g,t) / (std_g,t + eps)      over the rollouts of the group that have a turn t              (3)

All units of a turn have its advantage: [B,U]. With one turn, or gamma = 1 and no reward before the last turn, the
numerators are those of group_std; std is unbiased, and a turn that fewer than two rollouts have gets 0.

Departures: not that paper's estimator, of which the abstract was read; any number of turns, returns over them (2), and
(1) are choices made here. Certainty: ours. TRL, verl: no counterpart.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state
from gspo.advantages.statistics import group_statistics, scaled


@dataclass(frozen=True, kw_only=True)
class TurnReturns:
    name: Literal["turn_returns"] = "turn_returns"
    gamma: float = 1.0
    """Discount per turn."""
    eps: float = 1e-4
    """Added to the standard deviation."""

    traits: ClassVar[EstimatorTraits] = EstimatorTraits(needs=("mask", "turns"), gives_units=True)
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B U"], None]:
        assert batch.mask is not None and batch.turn is not None and batch.turn_rewards is not None
        returns = self._returns(batch)
        columns = []
        for t in range(returns.shape[1]):
            group = group_statistics(returns[:, t], batch.group)  # NaN: rows without this turn, and unscored ones
            usable = group.is_scored & group.has_spread
            gap = (returns[:, t].to(group.mean.dtype) - group.mean).masked_fill(~usable, 0.0)
            columns.append(scaled(gap, group.std, self.eps))  # (3)
        by_turn = torch.stack(columns, dim=1)
        return by_turn.gather(1, batch.turn.clamp(min=0)) * batch.mask, state

    def _returns(self, batch: AdvantageInput) -> Float[Tensor, "B T"]:
        """NaN where a row has no such turn, or no score."""
        assert batch.mask is not None and batch.turn is not None and batch.turn_rewards is not None
        reward = batch.turn_rewards.double().nan_to_num(nan=0.0)
        last = batch.turn.masked_fill(~batch.mask, 0).amax(dim=1)
        rest = batch.total.double() - reward.sum(dim=1)
        reward = reward.scatter_add(1, last[:, None], rest[:, None])  # (1)
        number = torch.arange(reward.shape[1], device=reward.device)
        running = torch.zeros_like(rest)
        returns = torch.empty_like(reward)
        for t in reversed(range(reward.shape[1])):  # (2)
            running = reward[:, t] + self.gamma * running
            returns[:, t] = running
        return returns.masked_fill(number[None] > last[:, None], torch.nan)
