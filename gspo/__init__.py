"""Sequence-level reinforcement-learning post-training of language models."""

from gspo.functional import Loss, advantages, loss, weights
from gspo.objectives import DAPO, GRPO, GSPO, DrGRPO, EntropyBonus, GSPOToken, ReferenceKL

__all__ = [
    "DAPO",
    "GRPO",
    "GSPO",
    "DrGRPO",
    "EntropyBonus",
    "GSPOToken",
    "Loss",
    "ReferenceKL",
    "advantages",
    "loss",
    "weights",
]
