"""Log-probabilities of chosen tokens from hidden states, without a [B,T,V] tensor.

Two ways, equal in value and gradient: a linear head, whole or split over ranks, has a forward and backward pass of its
own (`linear_head`); any other head (adapters on it, a callable), truncated sampling and small vocabularies go chunk by
chunk through autograd, which computes each chunk's logits again in the backward pass if there are several. Softmax and
everything after it run in float32 (float64 stays).
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gspo.sampling import Sampling, sampling_logits

Head = Callable[[Tensor], Tensor]

CHUNK_ELEMENTS = 2**24
"""Logits held from forward to backward, or at once where they are computed again: 64 MiB in float32."""
SMALL_ELEMENTS = 2**17
"""Logits so few that autograd's few operations take less time than the many of `linear_head`."""


@runtime_checkable
class ScoresTokens(Protocol):
    """A head that comes to log-probs without all logits at once, as `LinearHead` does."""

    @property
    def token_logprobs(self) -> Callable[..., tuple[Any, Any]]: ...


def token_logprobs(
    head: Head,
    hidden: Float[Tensor, "M D"],
    ids: Int[Tensor, "N"],
    sampling: Sampling,
    entropy: str = "value",
    chunk_elements: int = CHUNK_ELEMENTS,
    vocabulary: int = 2**16,
    position: Int[Tensor, "N"] | None = None,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(log-probability of each id, entropy of its distribution in nats) under `sampling`.

    entropy: "none" (zeros), "value" (no gradient), or "gradient". Id n is predicted from hidden[position[n]]; without
    `position` from hidden[n]. A position that predicts several ids is put through a linear head once, except where
    the logits are few.
    """
    is_large = len(ids) * vocabulary > SMALL_ELEMENTS
    if isinstance(head, ScoresTokens) and not sampling.truncates and is_large:
        # Greedy completions are scored at temperature 1.
        return head.token_logprobs(hidden, ids, position, sampling.temperature or 1.0, entropy, chunk_elements)
    chunk = max(1, chunk_elements // vocabulary)
    parts = []
    for start in range(0, max(len(ids), 1), chunk):
        units = slice(start, start + chunk)
        rows = units if position is None else position[units]
        arguments = (head, hidden, rows, ids[units], sampling, entropy)
        is_cut = len(ids) > chunk and torch.is_grad_enabled()
        parts.append(checkpoint(_score, *arguments, use_reentrant=False) if is_cut else _score(*arguments))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _score(
    head: Head, hidden: Tensor, rows: slice | Tensor, ids: Tensor, sampling: Sampling, entropy: str
) -> tuple[Tensor, Tensor]:
    logits = sampling_logits(head(hidden[rows]), sampling, keep=ids)
    total = logits.logsumexp(dim=-1)
    logprobs = logits.gather(1, ids[:, None])[:, 0] - total
    if entropy == "none":
        return logprobs, torch.zeros_like(logprobs)
    with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
        log_p = logits - total[:, None]
        value = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(dim=-1)
    return logprobs, value
