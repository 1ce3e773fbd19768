"""Environments of other libraries, unchanged. No library is imported before one of its environments is there."""

from gspo.envs.adapters.detect import adapt
from gspo.envs.adapters.endpoint import Outcome, program_env
from gspo.envs.adapters.gymnasium import gymnasium_env
from gspo.envs.adapters.openenv import openenv_env
from gspo.envs.adapters.reasoning_gym import reasoning_gym_env, reasoning_gym_rows
from gspo.envs.adapters.textarena import textarena_env
from gspo.envs.adapters.trl import trl_env
from gspo.envs.adapters.verifiers import verifiers_rows, verifiers_v0_env, verifiers_v1_env

__all__ = [
    "Outcome",
    "adapt",
    "gymnasium_env",
    "openenv_env",
    "program_env",
    "reasoning_gym_env",
    "reasoning_gym_rows",
    "textarena_env",
    "trl_env",
    "verifiers_rows",
    "verifiers_v0_env",
    "verifiers_v1_env",
]
