"""How the sequences of a micro-batch lie in a forward pass. Nothing above the policy knows which layout is used.

`padded`: one row per completion, prompt repeated, padding on the right; the model's own causal attention.
`packed`: no padding: sequences one after another, each seeing itself only.
`shared_prefix`: what sequences have in common stands once (Prefix Grouper, 2506.05433, and beyond it: prompts that
    begin alike, turns that continue a conversation, completions that begin alike). Each token sees its own sequence.
`auto`: the cheapest of them by `gspo.policies.costs`.

Positions restart where sequences part, so values and gradients are those of `padded` up to rounding, for networks
whose tokens meet in attention only; `Network.refusal` finds out whether that holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gspo.policies.attention import Attention
from gspo.policies.costs import CALL, NetworkShape, blocks_cost, masked_pairs_cost, rows_cost
from gspo.policies.prefixes import Ids, Packed, pack
from gspo.policies.tree_attention import Blocks, FlexRows, MaskedRows, blocks_of

LayoutName = Literal["auto", "padded", "packed", "shared_prefix"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One forward pass, and where each completion's units are predicted."""

    name: str
    """Layout, and how it is attended to."""
    ids: Tensor
    """[R,L] token ids, padding on the right."""
    positions: Tensor | None
    """[R,L] rotary positions; None counts from 0."""
    attention: Attention | None
    """None is the model's own, causal."""
    predicts: Tensor
    """[B,U] which of the R*L tokens predicts unit u of completion b (the token before it); 0 where there is none."""
    where: tuple[np.ndarray, ...]
    """For each completion, which of the R*L tokens are its prompt and its own, without the last."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to lay sequences out: its cost, and what goes through the network."""

    name: str
    cost: float
    rows: int
    length: int
    packed: Packed | None = None
    runs: list[slice] | None = None
    """Which tokens of `packed` stand in which row, when there are several."""
    row_of_run: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that go through the network, padding included."""
        return self.rows * self.length


def lay_out(
    name: LayoutName,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    pad_id: int,
    device: torch.device,
    shape: NetworkShape,
) -> Layout:
    """The last token of a completion is predicted and never read. Prompts hold at least one token."""
    best = cheapest(name, prompts, completions, shape, device.type)
    if best.packed is None:
        return _padded(prompts, completions, pad_id, device)
    return _placed(best, prompts, completions, pad_id, device)


def cheapest(
    name: LayoutName, prompts: Sequence[Ids], completions: Sequence[Ids], shape: NetworkShape, device: str
) -> Candidate:
    """The candidate of least cost among those that `name` allows; those that cannot win are not made."""
    if name != "auto":
        return min(candidates(name, prompts, completions, shape, device), key=_cost)
    found = [
        _padded_candidate(prompts, completions, shape),
        *_packed("shared_prefix", prompts, completions, shape, device),
    ]
    apart = sum(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    if len(found[1].packed or ()) > LITTLE_SHARED * apart:
        found += _packed("packed", prompts, completions, shape, device)
    return min(found, key=_cost)


LITTLE_SHARED = 0.9
"""Share of the tokens left after sharing above which it may be cheaper not to share."""


def candidates(
    name: LayoutName, prompts: Sequence[Ids], completions: Sequence[Ids], shape: NetworkShape, device: str
) -> list[Candidate]:
    """All that `name` allows, padded rows first."""
    found = [_padded_candidate(prompts, completions, shape)] if name in ("auto", "padded") else []
    for kind in ("packed", "shared_prefix"):
        if name in ("auto", kind):
            found += _packed(kind, prompts, completions, shape, device, is_thorough=True)
    return found


def _cost(candidate: Candidate) -> float:
    return candidate.cost


def _padded_candidate(prompts: Sequence[Ids], completions: Sequence[Ids], shape: NetworkShape) -> Candidate:
    length = _longest(prompts, completions)
    cost = rows_cost(shape, len(prompts), length, is_masked=False)
    return Candidate(name="padded", cost=cost, rows=len(prompts), length=length)


def _longest(prompts: Sequence[Ids], completions: Sequence[Ids]) -> int:
    """Tokens of the longest sequence that goes forward: all but the last, which is predicted and never read."""
    return max(len(p) + max(len(c) - 1, 0) for p, c in zip(prompts, completions, strict=True))


def _packed(
    kind: str,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    shape: NetworkShape,
    device: str,
    is_thorough: bool = False,
) -> list[Candidate]:
    """Under a mask; and by blocks, where that is possible and not sure to lose by its calls alone."""
    tails = [completion[:-1] for completion in completions]
    is_shared = kind == "shared_prefix"
    masked = _rows(kind, pack(prompts, tails, 1 if is_shared else None), shape)
    if device != "cpu" or shape.needs_mask(_longest(prompts, completions)):
        return [masked]
    if not is_thorough and masked_pairs_cost(shape, masked.rows, masked.length) < len(prompts) * CALL:
        return [masked]
    packed = pack(prompts, tails) if is_shared else masked.packed
    assert packed is not None
    return [masked, _blocks(kind, packed, shape)]


def _blocks(kind: str, packed: Packed, shape: NetworkShape) -> Candidate:
    blocks = blocks_of(packed.end)
    cost = blocks_cost(shape, len(packed), sum(block.pairs for block in blocks), len(blocks))
    return Candidate(name=f"{kind}, by blocks", cost=cost, rows=1, length=len(packed), packed=packed)


def _rows(kind: str, packed: Packed, shape: NetworkShape) -> Candidate:
    """Trees in rows of about equal length, the longest first, each where it still fits."""
    roots = np.flatnonzero(packed.positions == 0).tolist()
    runs = [slice(a, b) for a, b in zip(roots, [*roots[1:], len(packed)], strict=True)]
    lengths = [run.stop - run.start for run in runs]
    width = max(lengths)
    used: list[int] = []
    row_of_run = [0] * len(runs)
    for i in sorted(range(len(runs)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, taken in enumerate(used) if taken + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        used[row] += lengths[i]
        row_of_run[i] = row
    return Candidate(
        name=f"{kind}, masked",
        cost=rows_cost(shape, len(used), width, is_masked=True),
        rows=len(used),
        length=width,
        packed=packed,
        runs=runs,
        row_of_run=tuple(row_of_run),
    )


def _padded(prompts: Sequence[Ids], completions: Sequence[Ids], pad_id: int, device: torch.device) -> Layout:
    width = _longest(prompts, completions)
    ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    where = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        tokens = prompt + completion[:-1]
        ids[row, : len(tokens)] = tokens
        where.append(row * width + np.arange(len(tokens)))
    return Layout(
        name="padded",
        ids=torch.from_numpy(ids).to(device),
        positions=None,
        attention=None,
        predicts=_predicts(prompts, completions, where).to(device),
        where=tuple(where),
    )


def _placed(
    chosen: Candidate, prompts: Sequence[Ids], completions: Sequence[Ids], pad_id: int, device: torch.device
) -> Layout:
    packed = chosen.packed
    assert packed is not None
    if chosen.runs is None:
        return Layout(
            name=chosen.name,
            ids=torch.from_numpy(packed.ids)[None].to(device),
            positions=torch.from_numpy(packed.positions)[None].to(device),
            attention=Blocks(packed.end, packed.positions),
            predicts=_predicts(prompts, completions, packed.where).to(device),
            where=tuple(packed.where),
        )
    shape = (chosen.rows, chosen.length)
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    end = np.tile(np.arange(1, chosen.length + 1), (chosen.rows, 1))  # padding sees itself
    place = np.empty(len(packed), dtype=np.int64)
    used = [0] * chosen.rows
    for run, row in zip(chosen.runs, chosen.row_of_run, strict=True):
        column = used[row]
        columns = slice(column, column + run.stop - run.start)
        ids[row, columns] = packed.ids[run]
        positions[row, columns] = packed.positions[run]
        end[row, columns] = packed.end[run] - run.start + column
        place[run] = row * chosen.length + np.arange(columns.start, columns.stop)
        used[row] = columns.stop
    tensors = [torch.from_numpy(x).to(device) for x in (ids, positions, end)]
    kind = FlexRows if device.type == "cuda" else MaskedRows
    where = tuple(place[rows] for rows in packed.where)
    return Layout(
        name=chosen.name,
        ids=tensors[0],
        positions=tensors[1],
        attention=kind(tensors[2], tensors[1]),
        predicts=_predicts(prompts, completions, where).to(device),
        where=where,
    )


def _predicts(prompts: Sequence[Ids], completions: Sequence[Ids], where: Sequence[np.ndarray]) -> Tensor:
    """[B,U] from where each sequence's tokens stand."""
    out = np.zeros((len(prompts), max(map(len, completions))), dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        out[row, : len(completion)] = where[row][len(prompt) - 1 :][: len(completion)]
    return torch.from_numpy(out)
