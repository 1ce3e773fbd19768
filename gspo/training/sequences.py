"""A rollout's turns as training sequences: the extension rule. Pure.

While the prompt of each turn begins with the prompt and the completion of the turn before, token for token, the turns
are one sequence: what the policy said is chosen, what stands between was said by the environment. Where a prompt does
not (an environment that rewrites the history, a template that drops earlier thinking), a new sequence begins, which
has the whole new prompt as its own. Each completion is in exactly one sequence, under the prompt it was sampled after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gspo.types import Turn


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One training sequence: `prompt_ids`, then `ids` of which `mask` says what the policy chose."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    """The sampler's; 0 where the environment spoke."""
    replay: Any = None
    """See `Completion`; of a piece of several turns, that of its first turn, `followed_by` those of the others."""


def pieces_of(turns: Sequence[Turn]) -> list[Piece]:
    """At least one: a rollout without a turn is an empty piece, which still counts as a row."""
    if len(turns) == 1:
        completion = turns[0].completion
        mask = (True,) * len(completion.ids)
        return [
            Piece(
                prompt_ids=turns[0].prompt_ids,
                ids=completion.ids,
                mask=mask,
                logprobs=completion.logprobs,
                replay=completion.replay,
            )
        ]
    found: list[Piece] = []
    for turn in turns:
        said = turn.completion
        last = found[-1] if found else None
        if last is None or not extends(turn.prompt_ids, last):
            mask = (True,) * len(said.ids)
            piece = Piece(
                prompt_ids=turn.prompt_ids, ids=said.ids, mask=mask, logprobs=said.logprobs, replay=said.replay
            )
            found.append(piece)
            continue
        reply = turn.prompt_ids[len(last.prompt_ids) + len(last.ids) :]
        found[-1] = Piece(
            prompt_ids=last.prompt_ids,
            ids=last.ids + reply + said.ids,
            mask=last.mask + (False,) * len(reply) + (True,) * len(said.ids),
            logprobs=last.logprobs + (0.0,) * len(reply) + said.logprobs,
            replay=None if last.replay is None or said.replay is None else last.replay.followed_by(said.replay),
        )
    return found or [Piece(prompt_ids=(), ids=(), mask=(), logprobs=())]


def extends(prompt_ids: tuple[int, ...], piece: Piece) -> bool:
    """Whether a prompt begins with all of a piece."""
    head, tail = len(piece.prompt_ids), len(piece.prompt_ids) + len(piece.ids)
    return prompt_ids[:head] == piece.prompt_ids and prompt_ids[head:tail] == piece.ids
