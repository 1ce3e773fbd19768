"""How the rows of a micro-batch lie in a forward pass. Nothing above the policy knows which layout is used.

`padded`: one row per completion, prompt repeated, padding on the right; plain causal attention.
`shared_prefix`: one row per group, the prompt once and its completions after it, each of which attends to the prompt
and to itself (Prefix Grouper, 2506.05433). Positions restart behind the prompt for every completion, so values and
gradients are those of `padded` up to rounding, for networks whose tokens see each other through attention only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

LayoutName = Literal["padded", "shared_prefix"]
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One forward pass, and where each completion's units are predicted."""

    ids: Tensor
    """[R, L] token ids, padding on the right."""
    positions: Tensor | None
    """[R, L] rotary positions; None counts from 0."""
    mask: Tensor | None
    """[R, 1, L, L] bool, who attends to whom; None is causal."""
    row: Tensor
    """[B] forward row of each completion."""
    first: Tensor
    """[B] column that predicts the completion's unit 0 (the prompt's last token)."""
    offset: Tensor
    """[B] column that predicts unit u >= 1 is offset + u - 1."""

    def column(self, completion: Tensor, unit: Tensor) -> Tensor:
        """Column whose hidden state predicts `unit` of `completion`."""
        return torch.where(unit == 0, self.first[completion], self.offset[completion] + unit - 1)


def padded(prompts: Sequence[Ids], completions: Sequence[Ids], pad_id: int, device: torch.device) -> Layout:
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)) - 1
    ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        tokens = (prompt + completion)[:width]  # the last token is predicted, never read
        ids[row, : len(tokens)] = tokens
    length = torch.tensor([len(p) for p in prompts], device=device)
    return Layout(
        ids=torch.from_numpy(ids).to(device),
        positions=None,
        mask=None,
        row=torch.arange(len(prompts), device=device),
        first=length - 1,
        offset=length,
    )


def shared_prefix(prompts: Sequence[Ids], completions: Sequence[Ids], pad_id: int, device: torch.device) -> Layout:
    blocks: dict[Ids, list[int]] = {}
    for i, prompt in enumerate(prompts):
        blocks.setdefault(prompt, []).append(i)
    width = max(len(prompt) + sum(len(completions[i]) - 1 for i in rows) for prompt, rows in blocks.items())
    ids = np.full((len(blocks), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(blocks), width), dtype=np.int64)
    segment = np.full((len(blocks), width), -1, dtype=np.int64)  # 0 the prompt, 1.. its completions, -1 padding
    row = np.zeros(len(prompts), dtype=np.int64)
    offset = np.zeros(len(prompts), dtype=np.int64)
    for r, (prompt, members) in enumerate(blocks.items()):
        end = len(prompt)
        ids[r, :end], positions[r, :end], segment[r, :end] = prompt, np.arange(end), 0
        for s, i in enumerate(members):
            tokens = completions[i][:-1]
            span = slice(end, end + len(tokens))
            ids[r, span], segment[r, span] = tokens, s + 1
            positions[r, span] = len(prompt) + np.arange(len(tokens))
            row[i], offset[i], end = r, end, end + len(tokens)
    same = segment[:, :, None] == segment[:, None, :]
    seen = same | (segment[:, None, :] == 0)
    causal = np.tril(np.ones((width, width), dtype=bool))
    on_device = lambda x: torch.from_numpy(x).to(device)  # noqa: E731
    return Layout(
        ids=on_device(ids),
        positions=on_device(positions),
        mask=on_device(seen & causal)[:, None],
        row=on_device(row),
        first=torch.tensor([len(p) - 1 for p in prompts], device=device),
        offset=on_device(offset),
    )


def lay_out(
    name: LayoutName, prompts: Sequence[Ids], completions: Sequence[Ids], pad_id: int, device: torch.device
) -> Layout:
    return (padded if name == "padded" else shared_prefix)(prompts, completions, pad_id, device)


def refuse_sharing(config: Any) -> None:
    """Shared prefixes need layers whose tokens meet only in full attention; others are refused by name."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        raise ValueError(
            f'layout = "shared_prefix" cannot be exact for {config.model_type}: it has {", ".join(sorted(kinds))} '
            'layers; use layout = "padded"'
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f'layout = "shared_prefix" needs sdpa or eager attention, not {config._attn_implementation}; '
            'use layout = "padded"'
        )
