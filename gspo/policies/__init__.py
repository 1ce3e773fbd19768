"""Policies: log-probs, forward and backward of some rows, one optimizer step."""

from gspo.policies.base import Policy, StepResult
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.network import Network
from gspo.policies.payload import Payload
from gspo.policies.representation import RepresentationPolicy
from gspo.policies.trained import Scorer, TrainedPolicy

__all__ = [
    "Network",
    "Payload",
    "Policy",
    "RepresentationPolicy",
    "Scorer",
    "StepResult",
    "TokenScorer",
    "TrainedPolicy",
]
