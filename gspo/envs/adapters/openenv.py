"""Environments of OpenEnv: clients of an environment server, or the server's own environment object in this process.

    https://github.com/meta-pytorch/OpenEnv (0.10.0): EnvClient.reset(**kw), step(action) -> StepResult(observation,
    reward, done); Environment.reset(seed), step(action) -> Observation with reward and done; actions and observations
    are pydantic models

Text becomes an action by the action's fields: a JSON object in the text that has them; or, where one field is all that
must be given, the text itself in that field. What does not fit is answered in words: the environment is not stepped,
the turn has no reward and counts as `bad_actions`. An observation becomes text by its fields: the one field's value, or
"name: value" lines. Both can be replaced: `parse(text) -> action`, `render(observation) -> text`.

Clients are used through their blocking form (`.sync()`), each rollout in a session of its own (`new_session()`); the
server must allow as many at once (`max_concurrent_envs`). Not done: MCP environments (list_tools, call_tool) as tools,
forks (the protocol has no copy of a session), starting containers, environments in this process that only have
`reset_async` and `step_async`.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from gspo.envs.adapters.opening import Once, opening
from gspo.envs.base import Action, EnvFactory, Observation
from gspo.tasks.base import Row

Parse = Callable[[str], Any]
Render = Callable[[Any], str]
UNSAID = ("done", "reward", "metadata")
"""Fields of an observation that are not for the policy."""
SEEDS = 2**31


def text_of(observation: Any) -> str:
    """An observation's fields as text."""
    fields = observation.model_dump() if isinstance(observation, BaseModel) else observation
    if not isinstance(fields, dict):
        return str(fields)
    said = {name: value for name, value in fields.items() if name not in UNSAID and value is not None}
    if len(said) == 1:
        return _text(next(iter(said.values())))
    return "\n".join(f"{name}: {_text(value)}" for name, value in said.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def action_parser(kind: type[BaseModel] | None) -> Parse:
    """How text becomes an action of this class; of no class, for GenericEnvClient: a JSON object."""
    if kind is None:
        return _object
    fields = {name: field for name, field in kind.model_fields.items() if name != "metadata"}
    required = [name for name, field in fields.items() if field.is_required()] or list(fields)

    def parse(text: str) -> BaseModel:
        given = _object_in(text)
        if given is None or not set(given) <= set(kind.model_fields):
            if len(required) != 1:
                raise ValueError(f"the action must be a JSON object with {', '.join(fields)}")
            given = {required[0]: text.strip()}
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise ValueError(f"the action does not fit: {faults}") from None

    return parse


def _object(text: str) -> dict[str, Any]:
    given = _object_in(text)
    if given is None:
        raise ValueError("the action must be a JSON object")
    return given


def _object_in(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text."""
    at = text.find("{")
    if at < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return value


def action_class(made: Any) -> type[BaseModel] | None:
    """The action's class, as the environment or its client states it: in its generic bases, or where it takes one."""
    target = made.async_client if "async_client" in dir(type(made)) else made
    for base in (base for kind in type(target).__mro__ for base in vars(kind).get("__orig_bases__", ())):
        for argument in get_args(base)[:1]:
            if inspect.isclass(argument) and issubclass(argument, BaseModel):
                return argument
    for method in ("step", "_step_payload"):
        hint = get_type_hints(getattr(type(target), method, None) or (lambda: None)).get("action")
        if inspect.isclass(hint) and issubclass(hint, BaseModel):
            return hint
    return None


class OpenEnvEnv:
    """One session. Its reward is the sum of the steps'."""

    def __init__(self, made: Any, row: Row, seed: int, parse: Parse, render: Render) -> None:
        self._made, self._row, self._seed, self._parse, self._render = made, row, seed, parse, render
        self._once = Once()

    def start(self) -> Observation:
        self._once.use()
        given = self._row.get("reset", {})
        said, _, is_done = _parts(self._made.reset(**{"seed": self._seed, **given}))
        if is_done:
            raise RuntimeError("the environment says done before the first action")
        return Observation(content=opening(self._row, self._render(said)))

    def step(self, action: Action) -> Observation:
        try:
            parsed = self._parse(action.text)
        except ValueError as error:
            return Observation(content=f"error: {error}", facts={"bad_actions": 1})
        said, reward, is_done = _parts(self._made.step(parsed))
        return Observation(
            content=self._render(said),
            reward=None if reward is None else float(reward),
            is_done=is_done,
            facts={"bad_actions": 0},
        )

    def close(self) -> None:
        self._made.close()


def _parts(result: Any) -> tuple[Any, float | None, bool]:
    """(what is said, reward, done) of a client's StepResult or of a server's Observation."""
    said = result.observation if "observation" in dir(result) else result
    return said, result.reward, bool(result.done)


def openenv_env(
    make: Callable[[], Any] | Any,
    *,
    action: type[BaseModel] | None = None,
    parse: Parse | None = None,
    render: Render = text_of,
) -> EnvFactory:
    """Environments of a zero-argument function that makes a client or an Environment (an Environment's class is one);
    or of one client, which opens a session for every rollout.

    action: the action's class where it cannot be found out (GenericEnvClient: none, and then JSON objects are passed).
    Rows: {"prompt": [...], "reset": {...}}: reset's further arguments, a task's index say.
    """
    parent = None if callable(make) else _blocking(make)

    def factory(row: Row, seed: int) -> OpenEnvEnv:
        made = parent.new_session() if parent is not None else _blocking(make())
        return OpenEnvEnv(made, row, seed % SEEDS, parse or action_parser(action or action_class(made)), render)

    return factory


def _blocking(made: Any) -> Any:
    """A client in its blocking form, connected; an Environment as it is."""
    names = dir(type(made))
    if "connect" not in names:
        if "new_session" not in names and "step" not in names:
            raise ValueError(f"{type(made).__name__} is no OpenEnv client or Environment")
        return made
    client = made if "async_client" in names else made.sync()
    client.connect()
    return client
