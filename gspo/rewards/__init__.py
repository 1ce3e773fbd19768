"""Reward functions: built-in ones, your own from a file or as an object, and how a wave is scored."""

from gspo.rewards.base import RewardConfig, RewardFailure, RewardFunction, Scored, check_failures, joined
from gspo.rewards.calling import load_function
from gspo.rewards.scoring import Rewards

__all__ = [
    "RewardConfig",
    "RewardFailure",
    "RewardFunction",
    "Rewards",
    "Scored",
    "check_failures",
    "joined",
    "load_function",
]
