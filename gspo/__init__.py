"""Sequence-level reinforcement-learning post-training of language models."""

from typing import TYPE_CHECKING, Any

from gspo.advantages import (
    GDPO,
    OPO,
    RLOO,
    AStar,
    GroupMean,
    GroupStd,
    LitePPO,
    PassAtK,
    ReinforcePP,
    ReinforcePPBaseline,
    TurnReturns,
)
from gspo.functional import Loss, advantages, loss, weights
from gspo.objectives import (
    ABCGRPO,
    AGRO,
    CISPO,
    DAPO,
    DHPO,
    DPO,
    DPPO,
    EGSW,
    GMPO,
    GRPO,
    GSPO,
    LUSPO,
    REBEL,
    REINFORCE,
    SAPO,
    SSPO,
    TRPA,
    VESPO,
    AdaptiveEntropy,
    Corrected,
    DrGRPO,
    DualClip,
    EntropyBonus,
    GSPOToken,
    OldKL,
    ReferenceKL,
)

if TYPE_CHECKING:
    from gspo.training.api import train
    from gspo.training.parts import Given
    from gspo.training.run import Run, resume

__all__ = [
    "ABCGRPO",
    "AGRO",
    "CISPO",
    "DAPO",
    "DHPO",
    "DPO",
    "DPPO",
    "EGSW",
    "GDPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "LUSPO",
    "OPO",
    "REBEL",
    "REINFORCE",
    "RLOO",
    "SAPO",
    "SSPO",
    "TRPA",
    "VESPO",
    "AStar",
    "AdaptiveEntropy",
    "Corrected",
    "DrGRPO",
    "DualClip",
    "EntropyBonus",
    "GSPOToken",
    "Given",
    "GroupMean",
    "GroupStd",
    "LitePPO",
    "Loss",
    "OldKL",
    "PassAtK",
    "ReferenceKL",
    "ReinforcePP",
    "ReinforcePPBaseline",
    "Run",
    "TurnReturns",
    "advantages",
    "loss",
    "resume",
    "train",
    "weights",
]

_LATER = {
    "train": "gspo.training.api",
    "resume": "gspo.training.run",
    "Run": "gspo.training.run",
    "Given": "gspo.training.parts",
}


def __getattr__(name: str) -> Any:
    """What needs transformers is imported when it is first asked for: the mathematics alone needs torch."""
    if name not in _LATER:
        raise AttributeError(f"module 'gspo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
