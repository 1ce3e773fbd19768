"""Policies: log-probs, forward and backward of some rows, one optimizer step."""

from gspo.policies.base import Policy, StepResult
from gspo.policies.causal_lm import CausalLM, TokenPayload, TokenScorer
from gspo.policies.network import Network

__all__ = ["CausalLM", "Network", "Policy", "StepResult", "TokenPayload", "TokenScorer"]
