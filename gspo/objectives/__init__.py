"""Objectives: one file per paper. To add one, write the file and add it to `Objective` (or pass the object)."""

from typing import Annotated

from pydantic import Discriminator

from gspo.objectives.base import UnitObjective
from gspo.objectives.dapo import DAPO
from gspo.objectives.dr_grpo import DrGRPO
from gspo.objectives.grpo import GRPO
from gspo.objectives.gspo import GSPO
from gspo.objectives.gspo_token import GSPOToken
from gspo.objectives.regularizers import EntropyBonus, ReferenceKL

Objective = Annotated[GSPO | GSPOToken | GRPO | DrGRPO | DAPO, Discriminator("name")]
"""What a recipe may name under `objective`."""

Term = Annotated[ReferenceKL | EntropyBonus, Discriminator("name")]
"""What a recipe may add under `terms`."""

__all__ = [
    "DAPO",
    "GRPO",
    "GSPO",
    "DrGRPO",
    "EntropyBonus",
    "GSPOToken",
    "Objective",
    "ReferenceKL",
    "Term",
    "UnitObjective",
]
