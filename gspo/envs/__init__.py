"""Environments: what a rollout talks to between its turns."""

from gspo.envs.base import Action, Env, EnvFactory, Evaluates, Forks, Observation, Scores

__all__ = ["Action", "Env", "EnvFactory", "Evaluates", "Forks", "Observation", "Scores"]
