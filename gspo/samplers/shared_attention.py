"""Attention while sampling: a prompt is attended once for its group, a completion's own tokens beside it.

The softmax over prompt and own tokens is exact: each part is an average of values and the logarithm of its sum of
exponentials, and the two logarithms say how much each average weighs in the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gspo.policies.attention import Layer
from gspo.samplers.kv_store import Block

SMALL_KEYS, SMALL_QUERIES = 32, 8
"""On a CPU, several queries against fewer keys than this are quicker as two plain matrix products (0.17 against 0.36 ms
for 128 x 8 queries and 11 keys); one query, or more keys, by the fused kernel."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Softmax is computed in float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, hugely negative elsewhere: finite, so that a row that sees nothing is not NaN."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
        ~visible, torch.finfo(dtype).min / 4
    )


def _part(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[A,K,M,D] to [A,K,L,D]: the average of values [A,K,M,D] and its log-sum-exp [A,K,M,1].

    `bias` broadcasts to [A,K,M,L].
    """
    is_small = key.shape[2] < SMALL_KEYS and query.shape[2] >= SMALL_QUERIES and query.dtype == _wide(query.dtype)
    is_fusible = query.device.type == "cpu" and softcap is None and key.shape[-1] == value.shape[-1]
    if is_fusible and not is_small:
        # One kernel that never writes the scores; its scores are float32 whatever the dtype.
        average, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        return average, log_sum[..., None]
    scores = (query @ key.transpose(2, 3)).to(_wide(query.dtype)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    log_sum = scores.logsumexp(dim=-1, keepdim=True)
    return (scores - log_sum).exp().to(value.dtype) @ value, log_sum


class Prefill:
    """Causal attention of prompts of several lengths, packed into one row; keeps their keys and values.

    The linear layers see the packed row, so no padding is computed there; attention alone sees [N, longest].
    """

    def __init__(self, lengths: np.ndarray, device: torch.device) -> None:
        self.shape = (len(lengths), int(lengths.max()))
        self.kept: list[Tensor] = []
        """[N,K,longest,D]: keys and values of each layer in turn; zero behind a prompt's end."""
        row = np.repeat(np.arange(len(lengths)), lengths)
        column = np.concatenate([np.arange(length) for length in lengths])
        self.is_packed = bool(lengths.min() < lengths.max())
        self.place = torch.from_numpy(row * self.shape[1] + column).to(device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        _, scale, softcap, window = layer
        query, key, value = (self._padded(x) for x in (query, key, value))
        self.kept += [key, value]
        groups = query.shape[1] // key.shape[1]
        longest = self.shape[1]
        is_plain = softcap is None and (window is None or window >= longest)
        visible = None
        if not is_plain:
            position = torch.arange(longest, device=query.device)
            behind = position[:, None] - position
            visible = (behind >= 0) & (behind < (window or longest))
        if softcap is None or visible is None:
            out = F.scaled_dot_product_attention(
                query, key, value, visible, is_causal=is_plain, scale=scale, enable_gqa=groups > 1
            )
        else:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
            out, _ = _part(query, key, value, scale, softcap, _bias(visible, query.dtype))
        out = out.transpose(1, 2).flatten(0, 1)  # [N * longest, H, D]
        return (out[self.place] if self.is_packed else out)[None]

    def _padded(self, x: Tensor) -> Tensor:
        """[1,H,T,D] -> [N,H,longest,D]"""
        packed = x[0].transpose(0, 1)  # [T,H,D]
        if self.is_packed:
            padded = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:])
            padded[self.place] = packed
        else:
            padded = packed
        return padded.unflatten(0, self.shape).transpose(1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class Seats:
    """Which row sits where among its prompt's: queries [R,...] <-> [P,S,...] with S the largest live group.

    An empty seat repeats row 0; nobody reads its result.
    """

    slots: np.ndarray
    """[R]: the stored prompt that each row is behind."""
    device: torch.device

    @cached_property
    def shape(self) -> tuple[int, int]:
        return int(self.slots.max()) + 1, int(np.bincount(self.slots).max())

    @cached_property
    def _numbers(self) -> np.ndarray:
        order = np.argsort(self.slots, kind="stable")
        ordered = self.slots[order]
        seat = np.empty(len(order), dtype=np.int64)
        seat[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        return self.slots * self.shape[1] + seat

    @cached_property
    def _is_plain(self) -> bool:
        """Every seat taken, in order: a view."""
        return len(self.slots) == self.shape[0] * self.shape[1] and bool(
            (self._numbers == np.arange(len(self.slots))).all()
        )

    @cached_property
    def _seat_of_row(self) -> Tensor:
        return torch.from_numpy(self._numbers).to(self.device)

    @cached_property
    def _row_of_seat(self) -> Tensor:
        rows = np.zeros(self.shape[0] * self.shape[1], dtype=np.int64)
        rows[self._numbers] = np.arange(len(self.slots))
        return torch.from_numpy(rows).to(self.device)

    def seated(self, x: Tensor) -> Tensor:
        """[R,...] -> [P,S,...]"""
        return (x if self._is_plain else x.index_select(0, self._row_of_seat)).unflatten(0, self.shape)

    def by_row(self, x: Tensor) -> Tensor:
        """[P,S,...] -> [R,...]"""
        x = x.flatten(0, 1)
        return x if self._is_plain else x.index_select(0, self._seat_of_row)


@dataclass(kw_only=True)
class Decode:
    """Attention of one new token per row to its prompt and to its own tokens, which it joins."""

    own: Block
    before: np.ndarray
    """[R]: tokens that each row of `own` holds already; the new one is written there."""
    prompts: Block
    seats: Seats
    lengths: np.ndarray
    """[R]: tokens of the row's prompt."""

    @cached_property
    def _at(self) -> int | Tensor:
        """The place of the new token: one for all rows, or one each."""
        first = int(self.before[0])
        return first if (self.before == first).all() else torch.from_numpy(self.before).to(self.own.keys(0).device)

    @cached_property
    def _biases(self) -> dict[tuple[str, int | None], Tensor | None]:
        return {}

    def _bias(self, part: str, window: int | None, make: Callable[[int | None], Tensor | None]) -> Tensor | None:
        """The same for all layers of one window: made once per token."""
        if (part, window) not in self._biases:
            self._biases[part, window] = make(window)
        return self._biases[part, window]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        index, scale, softcap, window = layer
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        query = query.view(rows, kv_heads, heads // kv_heads, width)
        keys, values = self._with_new(index, key, value)
        own, own_log_sum = _part(query, keys, values, scale, softcap, self._bias("own", window, self._own_bias))
        prompt, prompt_log_sum = self._prompt_part(query, layer)
        weight = torch.sigmoid(prompt_log_sum - own_log_sum)
        return torch.lerp(own, prompt, weight.to(own.dtype)).reshape(rows, 1, heads, -1)

    def _with_new(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' own keys and values [R,K,U,D] after the new ones are written."""
        rows, used = len(key), int(self.before.max()) + 1
        out = []
        for buffer, new in ((self.own.keys(layer), key), (self.own.values(layer), value)):
            if isinstance(self._at, int):
                buffer[:rows, :, self._at] = new[:, :, 0]
            else:
                buffer[self._rows, :, self._at] = new[:, :, 0]
            out.append(buffer[:rows, :, :used])
        return out[0], out[1]

    @cached_property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.before), device=self.own.keys(0).device)

    def _own_bias(self, window: int | None) -> Tensor | None:
        """[R,1,1,U], or none where every row sees all of it."""
        used = int(self.before.max()) + 1
        behind = self.before[:, None] - np.arange(used)
        visible = behind >= 0
        if window is not None:
            visible &= behind < window
        if visible.all():
            return None
        buffer = self.own.keys(0)
        return _bias(torch.from_numpy(visible).to(buffer.device), buffer.dtype)[:, None, None]

    def _prompt_bias(self, window: int | None) -> Tensor | None:
        """[P,1,S,L]; [P,1,1,L] where all rows of a prompt see the same of it; none where they see all of it."""
        buffer = self.prompts.keys(0)
        position = self.before + self.lengths
        column = np.arange(int(self.lengths.max()))
        visible = column < self.lengths[:, None]
        is_windowed = window is not None and window <= int(position.max())
        if is_windowed:
            visible &= position[:, None] - column < window
        if visible.all():
            return None
        seated = self.seats.seated(torch.from_numpy(visible).to(buffer.device))  # [P,S,L]
        return _bias(seated if is_windowed else seated[:, :1], buffer.dtype)[:, None]

    def _prompt_part(self, query: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """[R,K,r,D] queries -> the average of the prompt's values [R,K,r,D] and its log-sum-exp [R,K,r,1]."""
        index, scale, softcap, window = layer
        prompts, seats = self.seats.shape
        repeats = query.shape[2]
        longest = int(self.lengths.max())
        keys = self.prompts.keys(index)[:prompts, :, :longest]
        values = self.prompts.values(index)[:prompts, :, :longest]
        seated = self.seats.seated(query).transpose(1, 2).flatten(2, 3)  # [P,K,S*r,D]
        bias = self._bias("prompt", window, self._prompt_bias)
        if bias is not None and bias.shape[2] > 1:
            bias = bias.repeat_interleave(repeats, dim=2)
        both = _part(seated, keys, values, scale, softcap, bias)
        average, log_sum = (
            self.seats.by_row(x.unflatten(2, (seats, repeats)).transpose(1, 2).contiguous()) for x in both
        )
        return average, log_sum
