"""Preference pairs from verified attempts. Pure.

VerIPO (2505.19000) builds contrast pairs and "reflective" pairs, in which a wrong attempt followed by its correction is
preferred over the wrong attempt. Certainty: these kinds are read; which attempts of a prompt meet each other is
inferred, and is:

| kind | there is | chosen | rejected |
|---|---|---|---|
| accuracy | a sound attempt and a wrong one | the longest sound one | the first wrong one |
| consistency | a sound attempt and a right one that is inconsistent or repetitive | the longest sound one | that one |
| reflective | wrong attempts alone | the first of them, then a correction | the same attempt, ended where it was |

At most one pair of a kind per prompt, and never two equal texts. Cut attempts are never chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gspo.verifiers.base import Attempt, Verdict

Kind = Literal["accuracy", "consistency", "reflective"]
KINDS: tuple[Kind, ...] = ("accuracy", "consistency", "reflective")
Judged = tuple[Attempt, Verdict]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two completions of one prompt, as ids; `chosen` is preferred."""

    kind: Kind
    prompt_id: int
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    note: str = ""
    """The verifier's words on the rejected one."""


Correct = Callable[[Attempt], tuple[int, ...] | None]
"""Ids of an attempt followed by its correction; None where it cannot be corrected."""


def build_pairs(
    judged: Sequence[Judged], kinds: Sequence[Kind] = KINDS, correct: Correct | None = None, max_tokens: int = 0
) -> list[Pair]:
    """Pairs of all prompts, in the order of their first attempts. `max_tokens` bounds the chosen; 0 does not."""
    prompts: dict[int, list[Judged]] = {}
    for attempt, verdict in judged:
        prompts.setdefault(attempt.prompt_id, []).append((attempt, verdict))
    found = [pair for one in prompts.values() for pair in _pairs_of(one, kinds, correct, max_tokens)]
    return [pair for pair in found if pair.chosen_ids != pair.rejected_ids]


def _pairs_of(judged: Sequence[Judged], kinds: Sequence[Kind], correct: Correct | None, max_tokens: int) -> list[Pair]:
    fits = lambda ids: not max_tokens or len(ids) <= max_tokens  # noqa: E731
    sound = [a for a, verdict in judged if verdict.is_sound and not a.is_cut and fits(a.ids)]
    wrong = [(a, verdict) for a, verdict in judged if not verdict.is_correct]
    unsound = [(a, verdict) for a, verdict in judged if verdict.is_correct and not verdict.is_sound]
    pairs: list[Pair] = []
    if sound:
        best = max(sound, key=lambda a: len(a.ids))
        for kind, worse in (("accuracy", wrong), ("consistency", unsound)):
            if kind in kinds and worse:
                pairs.append(_pair(kind, best.ids, *worse[0]))
    elif "reflective" in kinds and correct is not None and len(wrong) == len(judged):
        for attempt, verdict in wrong:
            corrected = None if attempt.is_cut else correct(attempt)
            if corrected is not None and fits(corrected):
                return [_pair("reflective", corrected, attempt, verdict)]
    return pairs


def _pair(kind: Kind, chosen: tuple[int, ...], rejected: Attempt, verdict: Verdict) -> Pair:
    return Pair(
        kind=kind,
        prompt_id=rejected.prompt_id,
        prompt_ids=rejected.prompt_ids,
        chosen_ids=chosen,
        rejected_ids=rejected.ids,
        note=verdict.note or ("wrong" if not verdict.is_correct else ""),
    )


def solved_prompts(judged: Sequence[Judged]) -> list[int]:
    """Prompts whose every attempt is right, in their order."""
    right: dict[int, bool] = {}
    for attempt, verdict in judged:
        right[attempt.prompt_id] = right.get(attempt.prompt_id, True) and verdict.is_correct
    return [prompt_id for prompt_id, is_right in right.items() if is_right]
