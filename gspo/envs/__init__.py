"""Environments: what a rollout talks to between its turns."""

from gspo.envs.base import Action, Ending, Env, EnvFactory, Evaluates, Forks, Observation, Scores

__all__ = ["Action", "Ending", "Env", "EnvFactory", "Evaluates", "Forks", "Observation", "Scores"]
