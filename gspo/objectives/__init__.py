"""Objectives: one file per paper. To add one, write the file and add it to `Objective` (or pass the object)."""

from typing import Annotated

from pydantic import Discriminator

from gspo.objectives.abc_grpo import ABCGRPO
from gspo.objectives.adaptive_entropy import AdaptiveEntropy
from gspo.objectives.agro import AGRO
from gspo.objectives.base import Composite, Stateful, Traits, UnitObjective
from gspo.objectives.cispo import CISPO
from gspo.objectives.corrected import Corrected
from gspo.objectives.dapo import DAPO
from gspo.objectives.dhpo import DHPO
from gspo.objectives.dpo import DPO
from gspo.objectives.dppo import DPPO
from gspo.objectives.dr_grpo import DrGRPO
from gspo.objectives.dual_clip import DualClip
from gspo.objectives.egsw import EGSW
from gspo.objectives.entropy_bonus import EntropyBonus
from gspo.objectives.gmpo import GMPO
from gspo.objectives.grpo import GRPO
from gspo.objectives.gspo import GSPO
from gspo.objectives.gspo_token import GSPOToken
from gspo.objectives.kl_penalties import OldKL, ReferenceKL
from gspo.objectives.luspo import LUSPO
from gspo.objectives.rebel import REBEL
from gspo.objectives.reinforce import REINFORCE
from gspo.objectives.sapo import SAPO
from gspo.objectives.sspo import SSPO
from gspo.objectives.trpa import TRPA
from gspo.objectives.vespo import VESPO

Objective = Annotated[
    GSPO
    | GSPOToken
    | GRPO
    | DrGRPO
    | DAPO
    | SAPO
    | SSPO
    | DHPO
    | ABCGRPO
    | EGSW
    | TRPA
    | AGRO
    | REBEL
    | DPO
    | CISPO
    | GMPO
    | LUSPO
    | VESPO
    | DualClip
    | DPPO
    | REINFORCE,
    Discriminator("name"),
]
"""What a recipe may name under `objective`."""

Term = Annotated[ReferenceKL | OldKL | EntropyBonus | AdaptiveEntropy, Discriminator("name")]
"""What a recipe may add under `terms`."""

__all__ = [
    "ABCGRPO",
    "AGRO",
    "CISPO",
    "DAPO",
    "DHPO",
    "DPO",
    "DPPO",
    "EGSW",
    "GMPO",
    "GRPO",
    "GSPO",
    "LUSPO",
    "REBEL",
    "REINFORCE",
    "SAPO",
    "SSPO",
    "TRPA",
    "VESPO",
    "AdaptiveEntropy",
    "Composite",
    "Corrected",
    "DrGRPO",
    "DualClip",
    "EntropyBonus",
    "GSPOToken",
    "Objective",
    "OldKL",
    "ReferenceKL",
    "Stateful",
    "Term",
    "Traits",
    "UnitObjective",
]
