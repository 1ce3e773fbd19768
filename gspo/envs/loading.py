"""From a run's settings to the factory of its environments."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from gspo.envs.base import EnvFactory
from gspo.envs.config import EnvironmentConfig
from gspo.rewards.calling import check_options, load_function


def op_amp(**options: Any) -> EnvFactory:
    from gspo.envs.circuits import op_amp
    from gspo.envs.sizing import Sizing

    return Sizing(circuit=op_amp(), **_checked(options, Sizing, "circuit"))


def rc_ladder(stages: int = 3, **options: Any) -> EnvFactory:
    from gspo.envs.circuits import rc_ladder
    from gspo.envs.sizing import Sizing

    return Sizing(circuit=rc_ladder(stages), **_checked(options, Sizing, "circuit"))


def black_box(**options: Any) -> EnvFactory:
    from gspo.envs.black_box import BlackBox

    return BlackBox(**_checked(options, BlackBox))


def calculator(**options: Any) -> EnvFactory:
    from gspo.envs.calculator import calculator

    return calculator(**_checked(options, calculator))


BUILTIN: dict[str, Callable[..., EnvFactory]] = {
    function.__name__: function for function in (calculator, op_amp, rc_ladder, black_box)
}
"""The built-in environments by name: options in, a factory out."""


def _checked(options: dict[str, Any], function: Callable[..., Any], *but: str) -> dict[str, Any]:
    known = [name for name in inspect.signature(function).parameters if name not in but]
    check_options(options, known)
    return options


def load_environment(config: EnvironmentConfig) -> EnvFactory:
    """The built-in of that name with its options; or what a file holds, adapted where it is another library's."""
    from gspo.envs.adapters import adapt

    if config.function:
        return adapt(load_function(config.function), **config.options)
    if config.name not in BUILTIN:
        near = difflib.get_close_matches(config.name, BUILTIN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(BUILTIN))}"
        raise ValueError(f"no built-in environment {config.name!r}; {hint} (your own goes into environment.function)")
    try:
        return BUILTIN[config.name](**config.options)
    except ValueError as error:
        raise ValueError(f"environment {config.name}: {error}") from None
