"""Token sequences packed so that what they have in common stands once: a tree of segments, in depth-first order.

Sequences are sorted; each one is written from the place where it leaves the one before it. A packed token is seen by
itself and by every later token of the sequences that go through it, and in depth-first order these stand right behind
it. So one number per token says all about attention: token k is seen by token q when `k <= q < end[k]`.

    completions of one prompt  a b c d | a b c e f | a b x  ->  packed  a b c d e f x
                                                                   end     7 7 6 4 6 6 7
    positions 0 1 2 3 3 4 2: rotary positions restart where a sequence leaves the one before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Ids = tuple[int, ...]

MIN_SHARED = 8
"""Tokens that sequences of different prompts must have in common before it pays to write them once.

Every place where sequences part costs attention calls of its own where attention goes by blocks, and makes rows
uneven where it goes by rows. Completions always share their prompt."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Some sequences packed into one run of tokens."""

    ids: np.ndarray
    """[T] token ids."""
    positions: np.ndarray
    """[T] place of each token in its sequence."""
    end: np.ndarray
    """[T] token k is seen by the tokens k <= q < end[k]."""
    where: list[np.ndarray]
    """For each sequence, in the order given, the packed index of each of its tokens."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(prompts: Sequence[Ids], tails: Sequence[Ids], min_shared: int | None = MIN_SHARED) -> Packed:
    """Sequence i is `prompts[i] + tails[i]`. `min_shared` None shares nothing.

    Completions of one prompt share what they begin with when it has `min_shared` tokens.
    """
    order = range(len(prompts)) if min_shared is None else _sorted(prompts, tails)
    where: list[np.ndarray] = [_NOTHING] * len(prompts)
    ids: list[np.ndarray] = []
    starts: list[tuple[int, int]] = []  # packed index and depth at which each sequence leaves the one before it
    total, before, last = 0, _NOTHING, -1
    for i in order:
        tokens = np.array(prompts[i] + tails[i], dtype=np.int64)
        shared = 0
        if min_shared is not None and last >= 0:
            is_same = prompts[i] == prompts[last]
            least = min_shared if is_same else max(min_shared, MIN_SHARED)
            shared = _shared(before, tokens, len(prompts[i]) if is_same else 0, least)
        fresh = np.arange(total, total + len(tokens) - shared)
        where[i] = np.concatenate([where[last][:shared], fresh]) if shared else fresh
        ids.append(tokens[shared:])
        starts.append((total, shared))
        total, before, last = total + len(fresh), tokens, i
    positions = np.zeros(total, dtype=np.int64)
    for rows in where:
        positions[rows] = np.arange(len(rows))
    packed_ids = np.concatenate(ids) if ids else _NOTHING
    return Packed(ids=packed_ids, positions=positions, end=_ends(starts, total), where=where)


_NOTHING = np.zeros(0, dtype=np.int64)


def _sorted(prompts: Sequence[Ids], tails: Sequence[Ids]) -> list[int]:
    """Rows in the order of their tokens, each distinct prompt compared once."""
    rank = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
    # A prompt may begin with another prompt and its completion: then whole sequences must be compared.
    ordered = sorted(rank, key=rank.__getitem__)
    if any(b[: len(a)] == a for a, b in pairwise(ordered)):
        return sorted(range(len(prompts)), key=lambda i: (prompts[i] + tails[i], i))
    return sorted(range(len(prompts)), key=lambda i: (rank[prompts[i]], tails[i], i))


def _shared(before: np.ndarray, tokens: np.ndarray, prompt: int, min_shared: int) -> int:
    """How many of its first tokens a sequence takes over: all in common, or where that is hardly more, its prompt."""
    length = min(len(before), len(tokens))
    differs = before[:length] != tokens[:length]
    common = int(differs.argmax()) if differs.any() else length
    return common if common - prompt >= min_shared else prompt


def _ends(starts: list[tuple[int, int]], total: int) -> np.ndarray:
    """A token at depth d is seen up to where the next sequence begins that leaves at depth d or before."""
    end = np.full(total, total, dtype=np.int64)
    path: list[tuple[int, int, int]] = []  # runs of tokens still seen: first index, one behind the last, first's depth
    for (begin, depth), (behind, _) in zip(starts, [*starts[1:], (total, 0)], strict=True):
        while path and path[-1][2] + path[-1][1] - path[-1][0] > depth:
            first, stop, top = path.pop()
            cut = first + max(0, depth - top)
            end[cut:stop] = begin
            if cut > first:
                path.append((first, cut, top))
        path.append((begin, behind, depth))
    return end
