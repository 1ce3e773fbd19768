"""How a foreign environment begins: once, and its first words with the row's prompt as one prompt."""

from collections.abc import Sequence
from typing import Any

from gspo.renderers import Messages, Prompt
from gspo.tasks.base import Row


class Once:
    """A second start() of an environment is a mistake: it serves one rollout."""

    def __init__(self) -> None:
        self._is_used = False

    def use(self) -> None:
        if self._is_used:
            raise RuntimeError("this environment was started before: it serves one rollout, make another")
        self._is_used = True


Blocks = Sequence[dict[str, Any]]
"""A message's content in parts, as [{"type": "text", "text": "..."}]."""


def opening(row: Row, said: str | Blocks, between: str = "\n\n") -> Prompt:
    """The row's prompt with `said` at the end of its last user message; `said` alone where the row has none.

    A row for a chat model has a list as its prompt, if only [] or one system message; text stays text.
    """
    prompt = row.get("prompt", "")
    if isinstance(prompt, str):
        if not isinstance(said, str):
            raise ValueError("the environment begins with message parts: the row's prompt must be a list of messages")
        return f"{prompt}{between}{said}" if prompt else said
    messages: Messages = list(prompt)
    if not messages or messages[-1]["role"] != "user":
        return [*messages, {"role": "user", "content": said if isinstance(said, str) else list(said)}]
    last = messages[-1]
    return [*messages[:-1], {**last, "content": _joined(last["content"], said, between)}]


def _joined(content: Any, said: str | Blocks, between: str) -> Any:
    if isinstance(content, str) and isinstance(said, str):
        return f"{content}{between}{said}"
    return [*_parts(content), *_parts(said)]


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
