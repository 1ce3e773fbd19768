"""Log-probabilities of chosen tokens from hidden states, without a [B,T,V] tensor.

The head is applied to chunks of positions; in the backward pass each chunk's logits are computed again, so the peak
is one chunk of logits whatever the number of tokens. Softmax and everything after it run in float32 (float64 stays).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gspo.sampling import Sampling, sampling_logits

Head = Callable[[Tensor], Tensor]

CHUNK_ELEMENTS = 2**24
"""Logits held at once, in elements: 64 MiB in float32."""


def _score(head: Head, hidden: Tensor, ids: Tensor, sampling: Sampling, entropy: str) -> tuple[Tensor, Tensor]:
    logits = sampling_logits(head(hidden), sampling, keep=ids)
    total = logits.logsumexp(dim=-1)
    logprobs = logits.gather(1, ids[:, None])[:, 0] - total
    if entropy == "none":
        return logprobs, torch.zeros_like(logprobs)
    with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
        log_p = logits - total[:, None]
        value = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(dim=-1)
    return logprobs, value


def token_logprobs(
    head: Head,
    hidden: Float[Tensor, "N D"],
    ids: Int[Tensor, "N"],
    sampling: Sampling,
    entropy: str = "value",
    chunk_elements: int = CHUNK_ELEMENTS,
    vocabulary: int = 2**16,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(log-probability of each id, entropy of its distribution in nats) under `sampling`.

    entropy: "none", "value" (no gradient), or "gradient".
    """
    chunk = max(1, chunk_elements // vocabulary)
    if len(ids) <= chunk:
        return _score(head, hidden, ids, sampling, entropy)
    parts = []
    for start in range(0, len(ids), chunk):
        rows = slice(start, start + chunk)
        if torch.is_grad_enabled():
            part = checkpoint(_score, head, hidden[rows], ids[rows], sampling, entropy, use_reentrant=False)
        else:
            part = _score(head, hidden[rows], ids[rows], sampling, entropy)
        parts.append(part)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
