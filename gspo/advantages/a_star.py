"""A*-PO's advantage: the reward minus the prompt's optimal value, estimated once before training.

Brantley et al. 2025, https://arxiv.org/abs/2505.20686

    V*(x) = beta log mean_n exp(R_n / beta)     over N samples of the reference, stage one        (1)
    A     = R - V*(x)

One completion per prompt is enough. `gspo values` does stage one and writes V* into the column `value` of the data.
Departures: the paper's second stage regresses (beta_2 log(pi / pi_ref) - A)^2; here A goes into any objective.
Certainty: read in a library implementation. TRL: trl.experimental.a2po where present. verl: no counterpart.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state


@dataclass(frozen=True, kw_only=True)
class AStar:
    name: Literal["a_star"] = "a_star"

    traits: ClassVar[EstimatorTraits] = EstimatorTraits(needs=("values",), min_group=1)
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        if batch.values is None:
            raise ValueError("a_star needs values [B]: V* of each row's prompt (column `value`; see gspo values)")
        difference = batch.total.double() - batch.values.double()
        return torch.where(difference.isnan(), torch.zeros_like(difference), difference), state


def optimal_value(rewards: Float[Tensor, "N"], beta: float = 0.5) -> float:
    """(1) of one prompt; NaN rewards are left out."""
    known = rewards[~rewards.isnan()].double()
    if not len(known):
        return math.nan
    return beta * (torch.logsumexp(known / beta, dim=0).item() - math.log(len(known)))
