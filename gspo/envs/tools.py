"""Tools: plain functions that a model may call, and an environment made of them.

A function is a tool as it stands: its type hints say what the arguments are, a Google-style docstring says what for.
Nothing that a model writes raises here: a call that cannot be read (gspo/envs/tool_calls.py), does not fit the
signature, fails, hangs or says too much becomes an observation in words.
"""

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NotRequired, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from gspo.envs.base import Action, EnvFactory, Maybe, Observation
from gspo.envs.tool_calls import Format, ToolCall, short, tool_calls
from gspo.tasks.base import Row

Function = Callable[..., Any]
Score = Callable[[str, Row], Maybe[float | None]]
"""Reward of an episode from what the policy said last, and the row."""


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """What became of a call."""

    name: str
    content: str
    is_error: bool = False


def tool_schema(function: Function) -> dict[str, Any]:
    """The JSON schema that chat templates show a model: name, description and parameters of a function."""
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    try:
        return get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"{error} A tool needs a type hint for each argument, and a docstring with a line for each under 'Args:'"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function with its name and what its arguments must be."""

    name: str
    function: Function
    parameters: tuple[str, ...]
    check: TypeAdapter

    @staticmethod
    def of(function: Function) -> "Tool":
        name, signature, hints = function.__name__, inspect.signature(function), get_type_hints(function)
        fields: dict[str, Any] = {}
        takes_more = False
        for parameter in signature.parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise ValueError(f"tool {name}: {parameter} cannot be given by name; tools are called by keyword")
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_more = True
                continue
            hint = hints.get(parameter.name, Any)
            fields[parameter.name] = hint if parameter.default is parameter.empty else NotRequired[hint]
        shape = TypedDict(f"{name}_arguments", fields)  # type: ignore[operator]
        shape.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
            extra="allow" if takes_more else "forbid", coerce_numbers_to_str=True, arbitrary_types_allowed=True
        )
        return Tool(name=name, function=function, parameters=tuple(fields), check=TypeAdapter(shape))


class ToolBox:
    """Functions that a model may call, by name.

    deadline: seconds for one call, of all tools or by name; a tool that hangs is given up and reported. A plain
    function that hangs keeps its (daemon) thread: Python cannot stop it.
    max_output_characters: longer results are cut and marked.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        *,
        deadline: float | Mapping[str, float] = 10.0,
        max_output_characters: int = 2000,
    ) -> None:
        found = [Tool.of(function) for function in functions]
        self.tools = {tool.name: tool for tool in found}
        if not found or len(self.tools) < len(found):
            names = ", ".join(tool.name for tool in found) or "none"
            raise ValueError(f"tools need distinct names, and there must be one at least; these are: {names}")
        unknown = [name for name in deadline if name not in self.tools] if isinstance(deadline, Mapping) else []
        if unknown or max_output_characters < 1:
            raise ValueError(f"deadline for no tool: {unknown}, or max_output_characters = {max_output_characters} < 1")
        self._deadlines = (
            {name: deadline.get(name, 10.0) for name in self.tools}
            if isinstance(deadline, Mapping)
            else dict.fromkeys(self.tools, deadline)
        )
        self._limit = max_output_characters

    @cached_property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """What a chat template shows the model."""
        return tuple(tool_schema(tool.function) for tool in self.tools.values())

    def read(self, text: str, format: Format = "auto") -> list[ToolCall]:
        """The calls that a model wrote."""
        return tool_calls(text, {name: tool.parameters for name, tool in self.tools.items()}, format)

    async def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """What became of the calls, made one after the other: a later one may build on an earlier one."""
        return [await self._result(call) for call in calls]

    async def _result(self, call: ToolCall) -> ToolResult:
        if call.fault:
            return self._failed(call, call.fault)
        if call.name not in self.tools:
            return self._failed(call, f"no tool is called {short(call.name)}; there are: {', '.join(self.tools)}")
        tool = self.tools[call.name]
        try:
            arguments = tool.check.validate_python(dict(call.arguments))
        except ValidationError as error:
            return self._failed(call, f"{tool.name}: {_told(error)}")
        deadline = self._deadlines[tool.name]
        try:
            async with asyncio.timeout(deadline) as limit:
                said = _text(await called(partial(tool.function, **arguments)))
        except Exception as error:
            if limit.expired():
                return self._failed(call, f"{tool.name} gave no answer within {deadline:g} s")
            return self._failed(call, f"{type(error).__name__}: {error}")
        return ToolResult(name=tool.name, content=self._cut(said))

    def _failed(self, call: ToolCall, why: str) -> ToolResult:
        return ToolResult(name=call.name or "tool", content=self._cut(f"error: {why}"), is_error=True)

    def _cut(self, text: str) -> str:
        if len(text) <= self._limit:
            return text
        return f"{text[: self._limit]}... [cut: {self._limit} of {len(text)} characters]"


def _told(error: ValidationError) -> str:
    """What is wrong with the arguments, in a line."""
    parts = []
    for fault in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in fault["loc"])
        given = "" if fault["type"] in ("missing", "extra_forbidden") else f", not {short(repr(fault['input']))}"
        parts.append(f"argument {place}: {fault['msg']}{given}")
    return "; ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, tuple)):
        try:
            return json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError):  # keys that JSON has no words for, circles
            return str(value)
    return "" if value is None else str(value)


async def called(function: Callable[[], Any]) -> Any:
    """A coroutine function's result, or a plain one's from a daemon thread of its own."""
    if inspect.iscoroutinefunction(function.func if isinstance(function, partial) else function):
        return await function()
    value = await in_thread(function)
    return await value if inspect.isawaitable(value) else value


def in_thread(function: Callable[[], Any]) -> Awaitable[Any]:
    """A plain function's result, from a daemon thread: one that hangs keeps neither loop nor process waiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver(value: Any, error: BaseException | None) -> None:
        if future.done():  # given up meanwhile
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # sys.exit in a tool ends the tool, not the run
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=work, daemon=True).start()
    return future


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How results go back into a conversation."""

    text: str = "\n{content}\n"
    """Into one of bare text (results joined by line breaks); conversations of messages get messages of role "tool"."""
    error: str = ""
    """Said in place of every error's words; for models whose alphabet cannot spell them."""

    def content(self, results: Sequence[ToolResult], is_chat: bool) -> str | list[dict[str, Any]]:
        said = [(result.name, self.error if result.is_error and self.error else result.content) for result in results]
        if is_chat:
            return [{"role": "tool", "name": name, "content": content} for name, content in said]
        return self.text.format(content="\n".join(content for _, content in said))


class ToolEnv:
    """An episode of calling tools; it is over when the policy says something without a call in it.

    Facts: tool_calls and tool_errors, per episode. `score` is asked once, with what was said last.
    """

    def __init__(
        self, box: ToolBox, row: Row, *, format: Format = "auto", reply: Reply = Reply(), score: Score | None = None
    ) -> None:
        self.box, self.row, self.format, self.reply = box, row, format, reply
        self._score, self._last = score, ""
        self._is_chat = not isinstance(row["prompt"], str)

    def start(self) -> Observation:
        """The row's own prompt. A conversation's template is shown the tools; bare text has no place for them."""
        return Observation(tools=self.box.schemas if self._is_chat else ())

    async def step(self, action: Action) -> Observation:
        self._last = action.text
        calls = self.box.read(action.text, self.format)
        if not calls:
            return Observation(is_done=True, facts={"tool_calls": 0, "tool_errors": 0})
        return answered(await self.box.run(calls), self.reply, self._is_chat)

    async def score(self) -> float | None:
        if self._score is None:
            return None
        value = self._score(self._last, self.row)
        return await value if inspect.isawaitable(value) else value

    def close(self) -> None: ...


def answered(results: Sequence[ToolResult], reply: Reply, is_chat: bool) -> Observation:
    """The results of calls as what the policy reads next."""
    errors = sum(result.is_error for result in results)
    facts = {"tool_calls": len(results), "tool_errors": errors}
    return Observation(content=reply.content(results, is_chat), facts=facts)


def tools_env(
    functions: Sequence[Function],
    *,
    format: Format = "auto",
    deadline: float | Mapping[str, float] = 10.0,
    max_output_characters: int = 2000,
    reply: Reply = Reply(),
    score: Score | None = None,
) -> EnvFactory:
    """Environments in which a policy may call functions. They are shared by all episodes, side by side: functions that
    keep something between calls belong into an object made per episode (gspo/envs/adapters/trl.py).

    `score(last_text, row)` is the episode's reward; without it the run's reward functions score the last text.
    """
    box = ToolBox(functions, deadline=deadline, max_output_characters=max_output_characters)

    def factory(row: Row, seed: int) -> ToolEnv:
        return ToolEnv(box, row, format=format, reply=reply, score=score)

    return factory
