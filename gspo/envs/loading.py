"""From a run's settings to the factory of its environments."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from gspo.envs.base import EnvFactory
from gspo.envs.config import EnvironmentConfig
from gspo.rewards.calling import check_options, load_function

BUILTIN: dict[str, Callable[..., Any]] = {}


def load_environment(config: EnvironmentConfig) -> EnvFactory:
    """The built-in of that name with its options; or what a file holds, adapted where it is another library's."""
    from gspo.envs.adapters import adapt

    if config.function:
        return adapt(load_function(config.function), **config.options)
    if config.name not in BUILTIN:
        near = difflib.get_close_matches(config.name, BUILTIN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(BUILTIN))}"
        raise ValueError(f"no built-in environment {config.name!r}; {hint} (your own goes into environment.function)")
    factory = BUILTIN[config.name]
    known = [name for name in inspect.signature(factory).parameters if name not in ("row", "seed")]
    check_options(config.options, known)
    return partial(factory, **config.options)
