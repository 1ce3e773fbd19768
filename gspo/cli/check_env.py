"""`gspo check-env`: an environment against the laws of the protocol, in words."""

from collections.abc import Sequence
from pathlib import Path

from gspo.data import load_dataset
from gspo.envs.check import Report, check_env
from gspo.envs.loading import load_environment
from gspo.settings import find_recipe, load_config


def check_environment(
    what: str, overrides: Sequence[str], *, rows: int, max_turns: int, timeout: float, actions: Sequence[str] | None
) -> Report:
    """`what`: a recipe, whose environment and data are taken; a built-in's name; or file.py:NAME.

    Other settings come as overrides, such as --environment.options.turns 3 or --data.task sizing/op_amp.
    """
    words = list(overrides)
    recipe = None
    if what.endswith(".toml"):
        recipe = find_recipe(what)
    else:
        words += [f"--environment.{'function' if ':' in what else 'name'}", what]
    config = load_config(recipe, words)
    if not config.environment.is_set:
        raise ValueError(f"{what} has no environment: set environment.name or environment.function")
    dataset = load_dataset(config.data, config.seed)
    chosen = [dataset.train[i] for i in range(min(rows, len(dataset.train)))]
    factory = load_environment(config.environment)
    return check_env(factory, chosen, max_turns=max_turns, timeout=timeout, actions=actions)


def said(path: str) -> list[str]:
    """Actions from a file, one per line."""
    return Path(path).read_text().splitlines()
