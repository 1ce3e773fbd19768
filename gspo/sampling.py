"""The distribution that completions are drawn from, as settings and as logits; sampling and scoring share it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn; training scores log-probabilities under this same distribution."""

    temperature: float = 1.0
    """Logits are divided by this; 0 means greedy (evaluation only)."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    max_completion_tokens: int = 256
    """Tokens after which a completion is cut (finish_reason "length")."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature is {self.temperature}; it must be >= 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}; it must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k is {self.top_k}; it must be >= 0 (0 keeps all tokens)")
        if self.max_completion_tokens < 1:
            raise ValueError(f"sampling.max_completion_tokens is {self.max_completion_tokens}; it must be >= 1")

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0


def sampling_logits(
    logits: Float[Tensor, "N V"], sampling: Sampling, keep: Int[Tensor, "N"] | None = None
) -> Float[Tensor, "N V"]:
    """Logits of the distribution that is really sampled from: temperature, then top-k, then top-p; -inf elsewhere.

    `keep` names one token per row that stays in the support: when a completion is scored by a policy that has moved,
    its tokens keep a finite log-probability. At the weights that sampled it changes nothing.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if not sampling.truncates:
        return logits
    ordered, index = logits.detach().sort(dim=-1, descending=True)
    removed = torch.zeros_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        removed[:, sampling.top_k :] = True
    if sampling.top_p < 1:
        before = ordered.masked_fill(removed, -torch.inf).softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = 0.0
        removed |= before >= sampling.top_p
    removed = torch.zeros_like(removed).scatter(1, index, removed)
    if keep is not None:
        removed = removed.scatter(1, keep[:, None], False)
    return logits.masked_fill(removed, -torch.inf)


BLOCK = 256
"""Tokens in a block of `draw`: sums over blocks find the block of the drawn token, and it alone is summed up."""


def draw(logits: Tensor, sampling: Sampling, uniform: np.ndarray) -> tuple[Tensor, Tensor]:
    """(token [R], its log-probability [R]) by inversion of the cumulative distribution at `uniform` [R].

    temperature 0 takes the most likely token and reports its log-probability at temperature 1.
    """
    p = sampling_logits(logits, sampling).softmax(dim=-1)
    token = p.argmax(dim=-1) if sampling.temperature == 0 else _inverted(p, uniform)
    return token, p.gather(1, token[:, None])[:, 0].log()


def _inverted(p: Tensor, uniform: np.ndarray) -> Tensor:
    """[R,V] probabilities -> [R]: the first token at which their running sum passes `uniform` of the whole."""
    vocabulary = p.shape[1]
    point = torch.from_numpy(uniform).to(p.dtype).to(p.device)[:, None]
    if vocabulary <= 2 * BLOCK:
        running = p.cumsum(dim=-1)
        return _first_above(running, point * running[:, -1:])[:, 0]
    in_blocks = vocabulary // BLOCK * BLOCK
    sums = p[:, :in_blocks].unflatten(1, (-1, BLOCK)).sum(dim=-1)
    if in_blocks < vocabulary:
        sums = torch.cat([sums, p[:, in_blocks:].sum(dim=-1, keepdim=True)], dim=-1)
    running = sums.cumsum(dim=-1)
    point = point * running[:, -1:]
    block = _first_above(running, point)
    column = block * BLOCK + torch.arange(BLOCK, device=p.device)
    inside = p.gather(1, column.clamp(max=vocabulary - 1)).masked_fill(column >= vocabulary, 0.0)
    before = running.gather(1, block) - sums.gather(1, block)
    return (block * BLOCK + _first_above(inside.cumsum(dim=-1), point - before))[:, 0]


def _first_above(running: Tensor, point: Tensor) -> Tensor:
    """[R,1]: the first place where the running sum [R,N] is above `point` [R,1], never one that adds nothing."""
    last = (running < running[:, -1:]).sum(dim=-1, keepdim=True)  # the last place that adds anything
    return torch.minimum(torch.searchsorted(running, point, right=True), last)
