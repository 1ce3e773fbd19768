"""REINFORCE++ with a baseline: the group mean taken off, then whitened over all tokens of the batch.

Hu 2025, https://arxiv.org/abs/2501.03262

    A_i = (Y_i - mean Y) / sqrt(var Y + 1e-8),     Y_i = R_i - mean_g,     mean and var over tokens

So a long completion weighs as much more in mean and variance as it is longer. Departures: none known; its KL is a
term of the loss (`terms`). Certainty: read in library implementations. verl: reinforce_plus_plus_baseline. TRL: no
counterpart.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state
from gspo.advantages.group import centred
from gspo.advantages.statistics import whitened

EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class ReinforcePPBaseline:
    name: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"

    traits: ClassVar[EstimatorTraits] = EstimatorTraits()
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        value, group = centred(batch)
        return whitened(value, group.is_scored * batch.length.to(value.dtype), EPS, is_in_root=True), state
