"""Layers whose matrices lie in parts on the ranks of one group, which all see the same rows (Megatron-LM, 1909.08053).

    by columns: each rank has some of the outputs       y_r = W_r x + b_r      the gradient of x is summed over ranks
    by rows:    each rank has some of the inputs        y = sum_r W_r x_r + b
    vocabulary: each rank has some of the tokens        an embedding is that of the rank which has the token;
                                                        log-probs from sum_r exp logsumexp_r, and no logits travel

What is not split is the same on all ranks of a group, its gradient too, to the bit.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import embedding, linear

from gspo.policies.linear_head import LinearHead, likelihoods


class _Alike(torch.autograd.Function):
    """The same on all ranks; each rank's use of it adds to its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Sum(torch.autograd.Function):
    """Over ranks; the gradient of the sum, which is the same on all, is that of each term."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        value = value.contiguous().clone()
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gathered(torch.autograd.Function):
    """[...] of each rank -> [ranks, ...]; each rank gets the gradient of its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.rank = dist.get_rank(group)
        return of_all(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rank], None


def of_all(value: Tensor, group: Any) -> Tensor:
    """[...] of each rank -> [ranks, ...], without gradient."""
    found = value.new_empty((dist.get_world_size(group), *value.shape))
    dist.all_gather(list(found.unbind()), value.contiguous(), group=group)
    return found


def alike(value: Tensor, group: Any) -> Tensor:
    return _Alike.apply(value, group)  # type: ignore[no-any-return]


def summed(value: Tensor, group: Any) -> Tensor:
    return _Sum.apply(value, group)  # type: ignore[no-any-return]


def gathered(value: Tensor, group: Any) -> Tensor:
    return _Gathered.apply(value, group)  # type: ignore[no-any-return]


def here(parameter: Tensor | None) -> Any:
    """This rank's part of it; gradient flows."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


Way = Literal["columns", "rows", "columns, gathered", "rows, from whole"]
"""How a matrix lies, and what goes in and comes out: the last two take and give whole vectors."""


class Inputs:
    """Of layers that are split by columns. Those that follow each other with the same input (queries, keys, values; gate
    and up) have it from one place, so that its gradient travels once."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.forget()

    def alike(self, x: Tensor) -> Tensor:
        if self._last is not x:
            self._last, self._alike = x, alike(x, self.group)
        assert self._alike is not None
        return self._alike

    def forget(self) -> None:
        """Let go of the last one, and of the graph behind it."""
        self._last: Tensor | None = None
        self._alike: Tensor | None = None


@dataclass(frozen=True)
class SplitLinear:
    """The forward pass of an `nn.Linear` whose weight is a DTensor."""

    module: nn.Linear
    way: Way
    inputs: Inputs
    group: Any

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = here(self.module.weight), here(self.module.bias)
        if self.way == "columns":
            return linear(self.inputs.alike(x), weight, bias)
        if self.way == "columns, gathered":
            parts = gathered(linear(self.inputs.alike(x), weight, bias), self.group)
            return torch.cat(parts.unbind(), dim=-1)
        if self.way == "rows, from whole":
            x = alike(x, self.group).chunk(dist.get_world_size(self.group), dim=-1)[dist.get_rank(self.group)]
        y = summed(linear(x, weight), self.group)
        return y if bias is None else y + bias


@dataclass(frozen=True)
class SplitEmbedding:
    """The forward pass of an `nn.Embedding` whose weight is a DTensor, split by tokens."""

    module: nn.Embedding
    group: Any

    def __call__(self, ids: Tensor) -> Tensor:
        weight = here(self.module.weight)
        first = dist.get_rank(self.group) * len(weight)
        local = ids - first
        is_here = (local >= 0) & (local < len(weight))
        padding = None if self.module.padding_idx is None else self.module.padding_idx - first
        has_padding = padding is not None and 0 <= padding < len(weight)
        found = embedding(torch.where(is_here, local, 0), weight, padding if has_padding else None)
        return summed(torch.where(is_here[..., None], found, 0.0), self.group)


@dataclass(frozen=True)
class SplitHead:
    """A linear head, of which this rank has the logits of some tokens."""

    part: LinearHead
    group: Any

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N,D] -> [N,V] logits, gathered."""
        parts = gathered(self.part(alike(hidden, self.group)), self.group)
        return torch.cat(parts.unbind(), dim=-1)

    def token_logprobs(
        self,
        hidden: Float[Tensor, "M D"],
        ids: Int[Tensor, "N"],
        position: Int[Tensor, "N"] | None,
        temperature: float,
        entropy: str,
        kept_elements: int,
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """`LinearHead.token_logprobs`. With the logits l of rank r, L_r their logsumexp, H_r their entropy:

        L = log sum_r exp L_r        H = L - sum_r exp(L_r - L) (L_r - H_r)
        """
        where = torch.arange(len(ids), device=ids.device) if position is None else position
        own = ids - dist.get_rank(self.group) * len(self.part.weight)
        states = alike(hidden, self.group)
        found = likelihoods(self.part, states, own, where, temperature, entropy, kept_elements, has_all=False)
        sizes = [len(part) for part in found]
        chosen, totals, entropies = gathered(torch.cat(found), self.group).split(sizes, dim=1)
        total = totals.logsumexp(dim=0)
        logprobs = chosen.sum(dim=0) - total[where]
        if entropy == "none":
            return logprobs, torch.zeros_like(logprobs)
        with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
            share = (totals - total).exp()
            value = total - (share * (totals - entropies)).sum(dim=0)
        return logprobs, value[where]
