"""Advantage estimators. To add one, write the file and add it to `Advantage`."""

from typing import Annotated

from pydantic import Discriminator

from gspo.advantages.a_star import AStar, optimal_value
from gspo.advantages.base import AdvantageEstimator, AdvantageInput, EstimatorTraits
from gspo.advantages.gdpo import GDPO
from gspo.advantages.group import RLOO, GroupMean, GroupStd, LitePPO
from gspo.advantages.opo import OPO
from gspo.advantages.pass_at_k import PassAtK
from gspo.advantages.reinforce_pp import ReinforcePP
from gspo.advantages.reinforce_pp_baseline import ReinforcePPBaseline
from gspo.advantages.turn_returns import TurnReturns

Advantage = Annotated[
    GroupStd
    | GroupMean
    | RLOO
    | LitePPO
    | GDPO
    | OPO
    | ReinforcePP
    | ReinforcePPBaseline
    | AStar
    | PassAtK
    | TurnReturns,
    Discriminator("name"),
]
"""What a recipe may name under `advantage`."""

__all__ = [
    "GDPO",
    "OPO",
    "RLOO",
    "AStar",
    "Advantage",
    "AdvantageEstimator",
    "AdvantageInput",
    "EstimatorTraits",
    "GroupMean",
    "GroupStd",
    "LitePPO",
    "PassAtK",
    "ReinforcePP",
    "ReinforcePPBaseline",
    "TurnReturns",
    "optimal_value",
]
