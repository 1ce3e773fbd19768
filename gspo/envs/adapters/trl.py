"""Environment objects of TRL, as its `environment_factory` takes them.

    https://huggingface.co/docs/trl/main/en/grpo_trainer (1.16): a class without arguments; reset(**row) -> None, text
    or content parts, appended to the last user message; every public method but reset and get_reward is a tool;
    get_reward() -> float, plain or a coroutine

Departures: TRL makes an object once and resets it often, here each rollout has a new one; what a tool raises is shown
as "error: ..." instead of {"error": ...}; an object without get_reward leaves the reward to the run's reward functions.
There is no seed in TRL's interface: what an object draws must come from its row, or a group does not begin alike.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gspo.envs.adapters.opening import Once, opening
from gspo.envs.base import Action, EnvFactory, Observation
from gspo.envs.tool_calls import Format
from gspo.envs.tools import Reply, ToolBox, answered, called
from gspo.tasks.base import Row

Make = Callable[[], Any]
NO_TOOLS = ("reset", "get_reward")
EMPTY: list[dict[str, Any]] = [{"role": "user", "content": ""}]
"""The prompt of a row that has none."""


def tools_of(made: Any) -> list[Callable[..., Any]]:
    """The methods that TRL takes for tools: the public functions of the object's class."""
    names = [name for name, _ in inspect.getmembers(type(made), predicate=inspect.isfunction)]
    return [getattr(made, name) for name in names if name not in NO_TOOLS and not name.startswith("_")]


class TRLEnv:
    """One rollout with one object. Facts: tool_calls and tool_errors, per episode."""

    def __init__(self, made: Any, row: Row, box: ToolBox | None, format: Format, reply: Reply, resets: Row) -> None:
        self._made, self._row, self._box, self._format, self._reply = made, row, box, format, reply
        self._resets, self._once = resets, Once()
        self._is_chat = not isinstance(row.get("prompt", EMPTY), str)

    async def start(self) -> Observation:
        self._once.use()
        said = await called(partial(self._made.reset, **self._resets))
        tools = self._box.schemas if self._box and self._is_chat else ()
        if said is None:
            return Observation(content="" if self._row.get("prompt") else EMPTY, tools=tools)
        content = opening({"prompt": EMPTY, **self._row}, said, between="")
        return Observation(content=content, tools=tools)

    async def step(self, action: Action) -> Observation:
        calls = self._box.read(action.text, self._format) if self._box else []
        if self._box is None or not calls:
            return Observation(is_done=True, facts={"tool_calls": 0, "tool_errors": 0})
        return answered(await self._box.run(calls), self._reply, self._is_chat)

    async def score(self) -> float | None:
        """The object's own reward, from its state."""
        if "get_reward" not in dir(type(self._made)):
            return None
        return await called(self._made.get_reward)

    def close(self) -> None: ...


def trl_env(
    make: Make | Mapping[str, Make],
    *,
    format: Format = "auto",
    deadline: float | Mapping[str, float] = 10.0,
    max_output_characters: int = 2000,
    reply: Reply = Reply(),
) -> EnvFactory:
    """Environments of a class of TRL's kind; or of several by name, chosen by a row's column `environment`."""

    def chosen(row: Row) -> tuple[Make, Row]:
        if not isinstance(make, Mapping):
            return make, row
        name = row.get("environment")
        if name not in make:
            raise ValueError(f"the row's column environment is {name!r}; there are: {', '.join(make)}")
        return make[name], {key: value for key, value in row.items() if key != "environment"}

    def factory(row: Row, seed: int) -> TRLEnv:
        maker, resets = chosen(row)
        made = maker()
        functions = tools_of(made)
        box = None
        if functions:
            box = ToolBox(functions, deadline=deadline, max_output_characters=max_output_characters)
        return TRLEnv(made, row, box, format, reply, resets)

    return factory
