"""Environments with Gymnasium's interface: `reset(seed) -> (observation, info)`, a step of five values.

    Gymnasium 1.4, https://gymnasium.farama.org; GEM 0.1, https://github.com/axon-rl/gem (text in and out, `spawn`)

Text goes through as it is. What is not text needs `render(observation) -> str` and `parse(text) -> action`; whole
numbers and the action space Discrete are read without them. A `parse` that raises ValueError is answered in words: the
environment is not stepped, the turn has no reward and counts as `bad_actions`.

Not done: vectorised environments, pictures (`render_mode`), GEM's `info["suffix"]` (its own wrappers join it to the
text).
"""

import copy
import re
from collections.abc import Callable
from numbers import Integral
from typing import Any

from gspo.envs.adapters.global_random import GlobalRandom
from gspo.envs.adapters.opening import Once, opening
from gspo.envs.base import Action, EnvFactory, Observation
from gspo.tasks.base import Row

Make = Callable[[], Any]
Render = Callable[[Any], str]
Parse = Callable[[str], Any]
SEEDS = 2**31
"""Seeds are taken modulo this: Gymnasium refuses negative ones, numpy's global generator large ones."""


def text_of(observation: Any) -> str:
    """Text as it is; a whole number in digits."""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, Integral):
        return str(int(observation))
    raise ValueError(
        f"an observation of type {type(observation).__name__} is no text: give render = a function from it to text"
    )


def action_parser(env: Any) -> Parse:
    """How text becomes an action of this environment: by its action space, or as it is where there is none."""
    space = getattr(env, "action_space", None)  # GEM has none
    kind = type(space).__name__
    if space is None or kind == "Text":
        return str
    if kind == "Discrete":
        return lambda text: _choice(text, int(space.start), int(space.start + space.n))
    raise ValueError(f"actions of {space} cannot be read from text: give parse = a function from text to an action")


def _choice(text: str, low: int, high: int) -> int:
    """The last whole number in a text."""
    found = re.findall(r"-?\d+", text)
    if not found or len(found[-1]) > 9 or not low <= int(found[-1]) < high:
        raise ValueError(f"the action must be a whole number from {low} to {high - 1}")
    return int(found[-1])


class GymEnv:
    """One episode. Its reward is the sum of the steps'."""

    def __init__(self, env: Any, row: Row, seed: int, render: Render, parse: Parse, generators: GlobalRandom) -> None:
        self._env, self._row, self._seed = env, row, seed
        self._render, self._parse, self._random = render, parse, generators
        self._once = Once()

    def start(self) -> Observation:
        self._once.use()
        with self._random:
            observation, _ = self._env.reset(seed=self._seed)
        return Observation(content=opening(self._row, self._render(observation)))

    def step(self, action: Action) -> Observation:
        try:
            parsed = self._parse(action.text)
        except ValueError as error:
            return Observation(content=f"error: {error}", facts={"bad_actions": 1})
        with self._random:
            observation, reward, is_done, is_truncated, _ = self._env.step(parsed)
        return Observation(
            content=self._render(observation),
            reward=float(reward),
            is_done=bool(is_done or is_truncated),
            is_truncated=bool(is_truncated and not is_done),
            facts={"bad_actions": 0},
        )

    def fork(self) -> "GymEnv":
        with copy.deepcopy(self._random):  # what a copy draws while it is made does not move the original
            env = _spawned(self._env)
        return GymEnv(env, self._row, self._seed, self._render, self._parse, copy.deepcopy(self._random))

    def close(self) -> None:
        if "close" in dir(self._env):  # GEM's have none
            self._env.close()


def _spawned(env: Any) -> Any:
    """A copy in the same state: by GEM's `spawn` where that is written, else a deep copy."""
    if "spawn" in dir(type(env)):
        try:
            return env.spawn(same_state=True)
        except NotImplementedError:
            pass
    return copy.deepcopy(env)


def gymnasium_env(make: Make | Any, *, render: Render = text_of, parse: Parse | None = None) -> EnvFactory:
    """Environments of a zero-argument function that makes one, as `lambda: gymnasium.make("FrozenLake-v1")`; or of one
    that exists already, copied for every episode. Parameters are given where it is made.

    Rows: {"prompt": [...]} whose last user message the first observation is appended to; {"prompt": []} for it alone.
    """

    def factory(row: Row, seed: int) -> GymEnv:
        generators = GlobalRandom(seed)
        with generators:
            env = make() if callable(make) else copy.deepcopy(make)
        return GymEnv(env, row, seed % SEEDS, render, parse or action_parser(env), generators)

    return factory
