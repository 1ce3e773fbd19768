"""Other people's environments, recognised by the methods they have."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gspo.envs.adapters.gymnasium import gymnasium_env
from gspo.envs.adapters.openenv import openenv_env
from gspo.envs.adapters.reasoning_gym import reasoning_gym_env
from gspo.envs.adapters.textarena import textarena_env
from gspo.envs.adapters.trl import trl_env
from gspo.envs.adapters.verifiers import verifiers_v0_env, verifiers_v1_env
from gspo.envs.base import EnvFactory
from gspo.rewards.calling import check_options


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A library's environments: what tells them, and their adapter."""

    library: str
    sign: str
    """The sign in words."""
    fits: Callable[[set[str]], bool]
    """Whether an object with these names is one."""
    adapter: Callable[..., EnvFactory]
    takes_object: bool = False
    """The adapter wants the object itself, which serves all episodes, and not the function that makes it."""


def _has(*names: str) -> Callable[[set[str]], bool]:
    return lambda found: found.issuperset(names)


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
KINDS = (
    Kind(
        library="TRL",
        sign="reset and get_reward, or reset and other methods but no step",
        fits=lambda found: "reset" in found and ("get_reward" in found or "step" not in found),
        adapter=trl_env,
    ),
    Kind(
        library="verifiers v0",
        sign="env_response and rubric",
        fits=_has("env_response", "rubric"),
        adapter=verifiers_v0_env,
        takes_object=True,
    ),
    Kind(
        library="verifiers v1",
        sign="run_episode and taskset",
        fits=_has("run_episode", "taskset"),
        adapter=verifiers_v1_env,
        takes_object=True,
    ),
    Kind(
        library="OpenEnv",
        sign="reset, step and state, or new_session",
        fits=lambda found: (
            found.issuperset({"reset", "step", "state"})
            and bool(found & {"reset_async", "new_session", "_step_payload"})
        ),
        adapter=openenv_env,
    ),
    Kind(
        library="TextArena",
        sign="reset, step and get_observation",
        fits=_has("reset", "step", "get_observation"),
        adapter=textarena_env,
    ),
    Kind(library="Gymnasium or GEM", sign="reset and step", fits=_has("reset", "step"), adapter=gymnasium_env),
    Kind(
        library="reasoning-gym",
        sign="score_answer",
        fits=_has("score_answer", "__getitem__"),
        adapter=reasoning_gym_env,
        takes_object=True,
    ),
)
"""Asked in this order: the first that fits is meant."""


def adapt(thing: Any, **options: Any) -> EnvFactory:
    """The factory of environments that `thing` is or can be made into.

    thing: a factory of gspo's own, called (row, seed), or a class of such factories; an environment of another library
    (KINDS), or a function that makes one from nothing or from options; TRL's dict of name -> class.
    options: those that the function takes go to it, the others to the adapter. The function is called once to see what
    it makes.
    """
    if isinstance(thing, Mapping):
        return trl_env(thing, **_known(options, trl_env))
    if isinstance(thing, str):
        raise ValueError(
            f"{thing!r} is text; give an environment, or a function that makes one, such as "
            '`def make(): return textarena.make("...")` (servers of NeMo-Gym by their URL: not done)'
        )
    if _is_factory(thing):
        return partial(thing, **options) if options else thing
    if inspect.isclass(thing) and _is_factory(vars(thing).get("__call__"), skip=1):
        return thing(**options)
    if not callable(thing):
        kind = _kind(thing)
        if kind.adapter is trl_env:
            raise ValueError(f"give the class {type(thing).__name__}, not an object: each rollout makes one of its own")
        return kind.adapter(thing, **_known(options, kind.adapter))
    taken = inspect.signature(thing).parameters
    missing = [name for name, p in taken.items() if p.default is p.empty and p.kind not in VARIADIC]
    if missing := [name for name in missing if name not in options]:
        raise ValueError(f"what makes the environment needs options for: {', '.join(missing)}")
    make = partial(thing, **{name: value for name, value in options.items() if name in taken})
    rest = {name: value for name, value in options.items() if name not in taken}
    made = make()
    kind = _kind(made)
    return kind.adapter(made if kind.takes_object else make, **_known(rest, kind.adapter))


def _is_factory(thing: Any, skip: int = 0) -> bool:
    """Whether its first two parameters are `row` and `seed`."""
    if not callable(thing):
        return False
    try:
        names = list(inspect.signature(thing).parameters)
    except ValueError:  # builtins say nothing
        return False
    return names[skip : skip + 2] == ["row", "seed"]


def _kind(made: Any) -> Kind:
    found = set(dir(made))
    for kind in KINDS:
        if kind.fits(found):
            return kind
    looked_for = "; ".join(f"{kind.library}: {kind.sign}" for kind in KINDS)
    public = ", ".join(sorted(name for name in found if not name.startswith("_"))[:12]) or "nothing public"
    raise ValueError(
        f"{type(made).__name__} is no environment that is known: it has {public}. Looked for, in this order: "
        f"{looked_for}. Your own is a function or class with parameters (row, seed): gspo/envs/base.py"
    )


def _known(options: dict[str, Any], adapter: Callable[..., EnvFactory]) -> dict[str, Any]:
    """Options checked against an adapter's own; the first parameter is the environment."""
    check_options(options, list(inspect.signature(adapter).parameters)[1:])
    return options
