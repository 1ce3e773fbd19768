"""Attention over packed tokens of which token k is seen by the tokens k <= q < end[k] (see `gspo.policies.prefixes`).

Three ways to the same numbers:
- `MaskedRows`: one boolean mask per row of tokens and the ordinary kernel. Any device, softcap, sliding windows.
- `Blocks` (CPU): the seen rectangles are attended to one by one, without a mask and without repeating keys or values,
  and merged by their log-sum-exps. Nothing of size tokens x tokens is ever made.
- `FlexRows` (CUDA): FlexAttention, compiled, which skips the blocks of the mask that nobody sees.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gspo.policies.attention import Layer

HALVE_ABOVE = 256
"""Causal blocks longer than this are attended to in halves: the CPU kernel computes what a causal mask discards."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class MaskedRows:
    """Rows [R,L] of packed tokens under a dense mask."""

    def __init__(self, end: Tensor, positions: Tensor) -> None:
        """`end`, `positions` [R,L]; padding has an `end` right behind itself."""
        place = torch.arange(end.shape[1], device=end.device)
        self.positions = positions
        self.seen = (place[None, :] <= place[:, None])[None] & (place[None, :, None] < end[:, None, :])  # [R,q,k]
        self.length = int(positions.max()) + 1 if positions.numel() else 0
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        _, scale, softcap, window = layer
        mask = self._mask(window if window is not None and window < self.length else None, query.dtype)
        if softcap is None:
            is_grouped = query.shape[1] != key.shape[1]
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=scale, enable_gqa=is_grouped
            ).transpose(1, 2)
        repeat = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(repeat, dim=1).mT * scale
        scores = torch.tanh(scores / softcap) * softcap + mask
        accurate = scores if scores.dtype == torch.float64 else scores.float()
        share = accurate.softmax(dim=-1).to(query.dtype)
        return (share @ value.repeat_interleave(repeat, dim=1)).transpose(1, 2)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R,1,L,L], 0 where seen and -inf elsewhere; made once per forward pass."""
        if (window, dtype) not in self._masks:
            seen = self.seen
            if window is not None:
                seen = seen & (self.positions[:, :, None] - self.positions[:, None, :] < window)
            blank = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[window, dtype] = blank.masked_fill_(~seen, -torch.inf)[:, None]
        return self._masks[window, dtype]


@dataclass(frozen=True)
class Block:
    """Queries `[q, q_stop)` see keys `[k, k_stop)`: all of them, or up to their own place when `is_causal`."""

    q: int
    q_stop: int
    k: int
    k_stop: int
    is_causal: bool

    @property
    def pairs(self) -> int:
        return (self.q_stop - self.q) * (self.k_stop - self.k)


def blocks_of(end: np.ndarray, halve_above: int = HALVE_ABOVE) -> list[Block]:
    """The seen rectangles. Causal blocks come first; together these hold every token as a query just once."""
    edges = np.flatnonzero(np.diff(end)) + 1
    starts = [0, *edges.tolist()] if len(end) else []
    causal: list[Block] = []
    full: list[Block] = []
    for first, stop in zip(starts, [*starts[1:], len(end)], strict=True):
        _triangle(first, stop, halve_above, causal, full)
        behind = int(end[first])
        if behind > stop:
            full.append(Block(stop, behind, first, stop, False))
    return causal + full


def _triangle(first: int, stop: int, halve_above: int, causal: list[Block], full: list[Block]) -> None:
    if stop - first <= halve_above:
        causal.append(Block(first, stop, first, stop, True))
        return
    middle = (first + stop) // 2
    _triangle(first, middle, halve_above, causal, full)
    _triangle(middle, stop, halve_above, causal, full)
    full.append(Block(middle, stop, first, middle, False))


class Blocks:
    """One row [1,T] of packed tokens on the CPU."""

    def __init__(self, end: np.ndarray, positions: np.ndarray) -> None:
        self.blocks = blocks_of(end)
        self.end, self.positions = end, positions
        self.length = int(positions.max()) + 1 if len(positions) else 0
        self._rows: MaskedRows | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        _, scale, softcap, window = layer
        if softcap is not None or (window is not None and window < self.length):
            return self._masked().attend(query, key, value, layer)
        return _BlockAttention.apply(query, key, value, self.blocks, scale)

    def _masked(self) -> MaskedRows:
        """For the layers whose scores are capped or cut off by distance."""
        if self._rows is None:
            self._rows = MaskedRows(torch.from_numpy(self.end)[None], torch.from_numpy(self.positions)[None])
        return self._rows


class _BlockAttention(torch.autograd.Function):
    """[1,H,T,D], [1,K,T,D] x 2 -> [1,T,H,D].

    Backward takes each block on its own, with the merged output and the merged log-sum-exp: the weights of a block's
    keys are exp(score - lse), whatever other blocks the query sees.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float) -> Tensor:
        _, heads, tokens, width = query.shape
        accurate = torch.float64 if query.dtype == torch.float64 else torch.float32
        out = torch.empty((1, tokens, heads, width), dtype=accurate, device=query.device)
        lse = torch.empty((1, heads, tokens), dtype=accurate, device=query.device)
        merged = out.transpose(1, 2)
        for block in blocks:
            queries, keys = slice(block.q, block.q_stop), slice(block.k, block.k_stop)
            part, part_lse = _forward(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, block.is_causal, scale=scale
            )
            if block.is_causal:
                merged[:, :, queries] = part
                lse[:, :, queries] = part_lse
            else:
                _merge(merged[:, :, queries], lse[:, :, queries], part, part_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        lse = saved[4]
        query, key, value, out = (x.to(lse.dtype) for x in saved[:4])  # the bf16 kernel is slower and less exact
        grad, out = grad.to(lse.dtype).transpose(1, 2), out.transpose(1, 2)
        d_query, d_key, d_value = (_like_rows(x) for x in (query, key, value))
        for block in ctx.blocks:
            queries, keys = slice(block.q, block.q_stop), slice(block.k, block.k_stop)
            parts = _backward(
                grad[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                out[:, :, queries],
                lse[:, :, queries],
                0.0,
                block.is_causal,
                scale=ctx.scale,
            )
            whole = (d_query[:, :, queries], d_key[:, :, keys], d_value[:, :, keys])
            for total, part in zip(whole, parts, strict=True):
                # Causal blocks come first and hold each token once: they fill what the others add to.
                total.copy_(part) if block.is_causal else total.add_(part)
        dtype = saved[0].dtype
        return d_query.to(dtype), d_key.to(dtype), d_value.to(dtype), None, None


def _like_rows(x: Tensor) -> Tensor:
    """[1,H,T,D] whose memory lies as [1,T,H,D], as the layers around attention have it."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Softmax over two sets of keys from the softmax over each, in place: [1,H,q,D] and [1,H,q]."""
    both = torch.logaddexp(lse, part_lse)
    out.mul_((lse - both).exp_()[..., None])
    out.addcmul_(part.to(out.dtype), (part_lse - both).exp_()[..., None])
    lse.copy_(both)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


class FlexRows:
    """Rows [R,L] of packed tokens through FlexAttention."""

    def __init__(self, end: Tensor, positions: Tensor) -> None:
        self.end, self.positions = end, positions
        self.length = int(positions.max()) + 1 if positions.numel() else 0
        self._masks: dict[int | None, Any] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        _, scale, softcap, window = layer
        from torch.nn.attention.flex_attention import flex_attention

        run = _compiled_flex() if query.is_cuda else flex_attention
        score = None if softcap is None else (lambda s, b, h, q, k: torch.tanh(s / softcap) * softcap)
        return run(
            query,
            key,
            value,
            score_mod=score,
            block_mask=self._mask(window if window is not None and window < self.length else None),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)

    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._masks:
            end, positions = self.end, self.positions

            def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                inside = (k <= q) & (q < end[b, k])
                return inside if window is None else inside & (positions[b, q] - positions[b, k] < window)

            rows, length = end.shape
            self._masks[window] = create_block_mask(seen, rows, None, length, length, device=str(end.device))
        return self._masks[window]
