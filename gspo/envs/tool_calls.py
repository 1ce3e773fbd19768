"""Reading calls of tools in what a model wrote. Nothing raises: a call that cannot be read says why (`fault`).

Three ways to write a call (`Format`):

    hermes   <tool_call>{"name": "calc", "arguments": {"expression": "17*24"}}</tool_call>, several of them, or a list
             in one (SmolLM2): the Hermes and Qwen templates, https://huggingface.co/docs/transformers/chat_extras
    json     {"name": "calc", "parameters": {"expression": "17*24"}} at the beginning of the text, several separated by
             ";" or white space, or a list: Llama 3
    call     calc(17*24) or calc(expression="17*24") alone on a line: for models of single characters, without JSON
    auto     the first of these three that the text looks like

Not read: calls written as XML parameters (Qwen3-Coder), as Python lists of calls (Llama 3.2, OLMo), or in the channels
of Harmony (gpt-oss).
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Format = Literal["auto", "hermes", "json", "call"]
OPENING, CLOSING = "<tool_call>", "</tool_call>"
_HERMES = re.compile(rf"{OPENING}(.*?)(?:{CLOSING}|(?={OPENING})|\Z)", re.DOTALL)
_CALL = re.compile(r"([A-Za-z_]\w*)\((.*)\)", re.DOTALL)
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.DOTALL)
_BRACKETS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call as a model wrote it: ToolCall(name="calc", arguments={"expression": "17*24"})."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    """Why it could not be read; such a call is answered with this and runs nothing."""


def tool_calls(text: str, tools: Mapping[str, Sequence[str]], format: Format = "auto") -> list[ToolCall]:
    """The calls in a text, in order; [] where there are none. `tools`: names of the parameters of every tool."""
    if format == "hermes" or (format == "auto" and OPENING in text):
        return [call for body in _HERMES.findall(text) for call in _json_calls(body, "a tool call")]
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    if format == "json" or (format == "auto" and bare[:1] in ("{", "[")):
        return _json_calls(bare, "a tool call") if _looks_like_json_call(bare) else []
    return [call for line in text.splitlines() for call in _line_call(line.strip(), tools, is_sure=format == "call")]


def _looks_like_json_call(text: str) -> bool:
    """An answer may be JSON too: a call says "name", and "parameters" or "arguments"."""
    return text[:1] in ("{", "[") and '"name"' in text and re.search(r'"(parameters|arguments)"\s*:', text) is not None


def _json_calls(text: str, what: str) -> list[ToolCall]:
    """Calls of JSON values that follow each other, ";" or nothing between them."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            return [*found, ToolCall(fault=f"{what} is not JSON ({error}): {short(text[at:])}")]
        found += [_call_of(item) for item in (value if isinstance(value, list) else [value])]
        at += len(text[at:]) - len(text[at:].lstrip("; \t\r\n"))
    return found or [ToolCall(fault=f"{what} is empty")]


def _call_of(value: Any) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolCall(fault=f'a tool call needs "name" and "arguments", not {short(json.dumps(value))}')
    name = value["name"]
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # as the OpenAI API writes them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(name=name, fault=f"the arguments of {name} are not JSON ({error})")
    if not isinstance(arguments, dict):
        return ToolCall(name=name, fault=f"the arguments of {name} must be an object, not {short(repr(arguments))}")
    return ToolCall(name=name, arguments=arguments)


def _line_call(line: str, tools: Mapping[str, Sequence[str]], *, is_sure: bool) -> list[ToolCall]:
    """The call that a line is made of. A name that no tool has is a call only where nothing else can be meant."""
    match = _CALL.fullmatch(line)
    if match is None or (match[1] not in tools and not is_sure):
        return []
    name, inside = match[1], match[2]
    if name not in tools:
        return [ToolCall(name=name)]
    parameters = tools[name]
    parts = _split(inside)
    if len(parameters) == 1 and not (len(parts) == 1 and _keyword(parts[0], parameters)):
        return [ToolCall(name=name, arguments={parameters[0]: _value(inside)} if inside.strip() else {})]
    arguments: dict[str, Any] = {}
    for position, part in enumerate(parts):
        keyword = _keyword(part, parameters)
        if keyword is None and position >= len(parameters):
            return [ToolCall(name=name, fault=f"{name} takes {len(parameters)} arguments, not {len(parts)}")]
        key, value = keyword or (parameters[position], part)
        if key in arguments:
            return [ToolCall(name=name, fault=f"{name} is given {key} twice")]
        arguments[key] = _value(value)
    return [ToolCall(name=name, arguments=arguments)]


def _split(text: str) -> list[str]:
    """Arguments at the commas outside brackets and quotes."""
    parts, start, open_brackets, quote = [], 0, [], ""
    for at, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            open_brackets.append(c)
        elif c in _BRACKETS and open_brackets[-1:] == [_BRACKETS[c]]:
            open_brackets.pop()
        elif c == "," and not open_brackets:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text.strip() else []


def _keyword(part: str, parameters: Sequence[str]) -> tuple[str, str] | None:
    match = _KEYWORD.fullmatch(part)
    return (match[1], match[2]) if match and match[1] in parameters else None


def _value(text: str) -> Any:
    """A Python literal, or the text itself: "17*24" stays text."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text.strip()


def short(text: str) -> str:
    """What a model wrote, as far as an answer repeats it."""
    return text if len(text) <= 80 else f"{text[:80]}..."
