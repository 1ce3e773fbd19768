"""Sequence-level reinforcement-learning post-training of language models."""

from typing import TYPE_CHECKING, Any

from gspo.advantages import RLOO, BatchStd, GroupMean, GroupStd
from gspo.functional import Loss, advantages, loss, weights
from gspo.objectives import DAPO, GRPO, GSPO, DrGRPO, EntropyBonus, GSPOToken, ReferenceKL

if TYPE_CHECKING:
    from gspo.training.api import train
    from gspo.training.parts import Given
    from gspo.training.run import Run, resume

__all__ = [
    "DAPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "BatchStd",
    "DrGRPO",
    "EntropyBonus",
    "GSPOToken",
    "Given",
    "GroupMean",
    "GroupStd",
    "Loss",
    "ReferenceKL",
    "Run",
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
