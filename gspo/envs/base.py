"""The environment seam: what a rollout talks to between its turns.

An environment is made for one rollout and thrown away: `factory(row, seed)` -> `start()` -> `step(action)` until an
observation says `is_done` -> `close()`. Methods may be plain functions or coroutines; plain ones run in threads, many
side by side, so an environment must not share state with its brothers. All rollouts of a group get the same row and
the same seed: they must begin alike.

What else an environment can do is a small protocol of its own: `Scores` (a reward of the whole episode), `Forks` and
`Evaluates` (alternatives at one turn, for TL-GRPO).
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from gspo.renderers import Messages
from gspo.tasks.base import Row

Value = TypeVar("Value")
Maybe = Value | Awaitable[Value]
"""What a plain method returns, or a coroutine gives."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """What the policy said in one turn."""

    text: str
    """The decoded completion, special tokens removed; without the thinking where the run strips it."""
    is_cut: bool = False
    """The completion ran into its token limit instead of ending."""
    turn: int = 0
    """Number of this turn, from 0."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the environment says: first of all, or in answer to an action.

    Example: Observation(content="out: 408", reward=0.0) goes on, Observation(reward=1.0, is_done=True) ends.
    """

    content: str | Messages = ""
    """What the policy reads next: text (a user message, where the conversation has messages), or messages. From
    `start`, "" stands for the row's own prompt. Of the last observation nothing is read."""
    reward: float | None = None
    """Reward of the action just taken; None where this turn has none."""
    is_done: bool = False
    """The episode is over."""
    is_truncated: bool = False
    """The environment ended it by a limit of its own (implies the end)."""
    rewrites: bool = False
    """`content` (messages) is the whole conversation from now on, in place of what was said so far: a summary, a
    dropped history. What follows is trained as a sequence of its own."""
    tools: tuple[dict[str, Any], ...] = ()
    """From `start`: JSON schemas of the tools that the chat template shows the model."""
    facts: dict[str, float] = field(default_factory=dict)
    """Numbers to average in the metrics, as `environment/NAME`."""


class Env(Protocol):
    def start(self) -> Maybe[Observation]: ...
    def step(self, action: Action) -> Maybe[Observation]: ...
    def close(self) -> Maybe[None]: ...


class EnvFactory(Protocol):
    """Makes the environment of one rollout. Equal arguments must give environments that begin and answer alike."""

    def __call__(self, row: Row, seed: int) -> Env: ...


@runtime_checkable
class Scores(Protocol):
    """Has a reward of the whole episode, asked for once when it is over."""

    def score(self) -> Maybe[float | None]: ...


@runtime_checkable
class Forks(Protocol):
    """Can be copied in the middle of an episode; the copy and the original then go separate ways."""

    def fork(self) -> Maybe[Env]: ...


@runtime_checkable
class Evaluates(Protocol):
    """Can say what an action would bring without taking it: the observation that `step` would give, no state moved."""

    def evaluate(self, action: Action) -> Maybe[Observation]: ...
