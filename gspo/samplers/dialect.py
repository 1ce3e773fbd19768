"""What a sampler asks of an inference server, whichever it is; `vllm` and `sglang` say it in their own words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from gspo.samplers.http import Link, Refused
from gspo.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Ask:
    """`n` completions of one prompt; completion i is drawn with the seed `seed + i`."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion, and whose weights said it."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: Literal["stop", "length", "abort"]
    """abort: dropped by the server, because its weights change."""
    labels: tuple[str, ...]
    """Labels of the weights behind its tokens, in their order; one, unless the weights changed under way."""
    routes: np.ndarray | None = None
    """[T,layers,k] experts of the tokens that went forward, in all hidden layers; None: not recorded."""


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server says of itself."""

    version: str
    model: str
    """The folder or Hugging Face id that it was started with."""
    max_length: int
    """Most tokens of a prompt and its completion; 0: not said."""
    records_routes: bool = False
    """Whether its completions say to which experts their tokens went."""
    problem: str = ""
    """Why what it draws, or says of it, would not be the policy's; empty where it would."""


class Dialect(Protocol):
    """All methods may raise `Unanswered`, or `Refused` where asking again is useless."""

    name: str

    def answers(self, link: Link, ask: Ask) -> list[Answer]: ...
    def label(self, link: Link) -> str:
        """The label of the weights; whatever the server calls those that it was started with."""
        ...

    def update(self, link: Link, folder: Path, label: str, restarts: bool, base: Path | None = None) -> None:
        """Load weights, forget cached prefixes, take the label; nothing is generated meanwhile.

        Completions under way are dropped (`restarts`) or end first. `base`: what adapters in `folder` stand on, for a
        server that does not have it.
        """
        ...

    def facts(self, link: Link) -> ServerFacts: ...
    def encode(self, link: Link, text: str) -> list[int]:
        """By the server's tokenizer, without tokens around the text."""
        ...


def needed(link: Link, answer: object, path: str, keys: Sequence[str], how: str) -> dict:
    """An answer that must be a table with these keys; else the line for a server that is none, or too old a one."""
    if not isinstance(answer, dict) or any(key not in answer for key in keys):
        raise Refused(f"{link} does not answer {path} as gspo needs it: {how}", 404)
    return answer
