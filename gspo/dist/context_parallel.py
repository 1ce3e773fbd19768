"""The tokens of rows spread over ranks, which exchange them for heads around attention (DeepSpeed-Ulysses, 2309.14509).

A rank runs the layers on its run of every row's tokens. Before attention each rank gives the others their heads of its
tokens and gets its own heads of all tokens; so the attention of every layout stays what it is, on fewer heads. Behind
the last layer all hidden states are gathered, and each rank scores its share of the completion tokens.

Every gradient of a weight then is a term of a sum over ranks, as it is where ranks see different rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gspo.dist.split_layers import gathered, of_all
from gspo.policies.attention import Attention, Layer
from gspo.policies.network import Network
from gspo.policies.routing import OWN, Pass
from gspo.policies.tree_attention import MaskedRows

reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""Before torch 2.13 it has the other name."""


class _Exchanged(torch.autograd.Function):
    """[ranks, ...]: part r goes to rank r, in the place of ours there."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchange(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradient, ctx.group), None


def _exchange(value: Tensor, group: Any) -> Tensor:
    found = torch.empty_like(value, memory_format=torch.contiguous_format)
    dist.all_to_all_single(found, value.contiguous(), group=group)
    return found


class _Joined(torch.autograd.Function):
    """[...] of each rank -> [ranks, ...]; whoever uses a part adds to its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return of_all(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = torch.empty_like(gradient[0], memory_format=torch.contiguous_format)
        reduce_scatter(own, gradient.flatten(0, 1).contiguous(), group=ctx.group)
        return own, None


class ContextParallel:
    """The tokens of rows over the ranks of `group`, which all see the same rows."""

    def __init__(self, group: Any) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def own(
        self, ids: Tensor, positions: Tensor | None, attention: Attention | None
    ) -> tuple[Tensor, Tensor, Attention]:
        """This rank's tokens of [R,L] rows, and the attention of all of them; rows are padded to equal parts."""
        rows, length = ids.shape
        if positions is None:
            positions = torch.arange(length, device=ids.device).expand(rows, length)
        return self._part(ids), self._part(positions), HeadsOfAll(attention or CausalRows(), length, self.group)

    def _part(self, tokens: Tensor, filling: int = 0) -> Tensor:
        """[R,L,...] -> [R, own tokens, ...]"""
        rows, length, *rest = tokens.shape
        each = -(-length // self.size)
        padding = tokens.new_full((rows, each * self.size - length, *rest), filling)
        return torch.cat([tokens, padding], dim=1)[:, self.rank * each : (self.rank + 1) * each]

    def own_pass(self, routes: Pass, rows: int, length: int) -> Pass:
        """The routes of this rank's tokens, to be asked by its routers."""
        forced = routes.forced
        if forced is not None:
            forced = self._part(forced.unflatten(0, (rows, length)), OWN).flatten(0, 1)
        return Pass(routers=routes.routers, forced=forced, keeps_probabilities=routes.keeps_probabilities)

    def fill(self, routes: Pass, own: Pass, rows: int, length: int) -> None:
        """Each rank's choices and probabilities become those of all tokens."""
        for name in ("own", "used", "probabilities"):
            for layer in getattr(own, name):
                parts = gathered(layer.unflatten(0, (rows, -1)), self.group)
                whole = torch.cat(parts.unbind(), dim=1)[:, :length]
                getattr(routes, name).append(whole.flatten(0, 1))

    def together(self, hidden: Tensor, length: int) -> Tensor:
        """[R, own tokens, D] -> [R,L,D]"""
        parts = _Joined.apply(hidden, self.group)
        return torch.cat(parts.unbind(), dim=1)[:, :length]

    def shared(self, count: int, work: Callable[[slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Two values for each of `count` units, each rank working on its own."""
        edges = [count * rank // self.size for rank in range(self.size + 1)]
        lengths = [stop - start for start, stop in pairwise(edges)]
        own = torch.stack(work(slice(*edges[self.rank : self.rank + 2])))
        parts = gathered(F.pad(own, (0, max(lengths) - own.shape[1])), self.group)
        values = torch.cat([part[:, :n] for part, n in zip(parts.unbind(), lengths, strict=True)], dim=1)
        return values[0], values[1]


@dataclass(frozen=True)
class HeadsOfAll:
    """Attention of all tokens, given each rank's tokens; a rank attends with its part of the heads."""

    inner: Attention
    length: int
    """Tokens of a row, without those that pad it."""
    group: Any

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        size = dist.get_world_size(self.group)
        out = self.inner.attend(*(self._all_tokens(x, size) for x in (query, key, value)), layer)
        rows, _, heads, width = out.shape
        padded = F.pad(out, (0, 0, 0, 0, 0, query.shape[2] * size - self.length))
        parts = padded.view(rows, size, -1, heads, width).transpose(0, 1)
        return _Exchanged.apply(parts, self.group).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _all_tokens(self, x: Tensor, size: int) -> Tensor:
        """[R,H,own tokens,D] -> [R,own heads,L,D]"""
        rows, heads, tokens, width = x.shape
        parts = x.view(rows, size, heads // size, tokens, width).transpose(0, 1)
        found = _Exchanged.apply(parts, self.group)
        return found.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.length]


class CausalRows:
    """Rows that are a sequence each."""

    def __init__(self) -> None:
        self._masked: MaskedRows | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        length = query.shape[2]
        if layer.softcap is None and (layer.window is None or layer.window >= length):
            is_grouped = query.shape[1] != key.shape[1]
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=layer.scale, enable_gqa=is_grouped
            ).transpose(1, 2)
        if self._masked is None:
            positions = torch.arange(length, device=query.device)[None]
            self._masked = MaskedRows(torch.full_like(positions, length), positions)
        return self._masked.attend(query, key, value, layer)


def refuse_unspread(network: Network, size: int, tensor_parallel: int = 1) -> None:
    """Raises ValueError for a network whose tokens `size` ranks cannot share, their heads being split already."""
    config, asked = network.config, f"ranks.context_parallel = {size}"
    if network.refusal:
        raise ValueError(f"{asked} spreads the tokens of {config.model_type}, but {network.refusal}")
    for name in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, name, None)
        if count is not None and count % (size * tensor_parallel):
            split = "" if tensor_parallel == 1 else f" times ranks.tensor_parallel = {tensor_parallel}"
            raise ValueError(f"{asked}{split} does not divide {name} = {count} of {config.model_type}")
