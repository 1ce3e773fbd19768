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


def draw(logits: Tensor, sampling: Sampling, uniform: np.ndarray) -> tuple[Tensor, Tensor]:
    """(token [R], its log-probability [R]) by inversion of the cumulative distribution at `uniform` [R].

    temperature 0 takes the most likely token and reports its log-probability at temperature 1.
    """
    logits = sampling_logits(logits, sampling)
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    if sampling.temperature == 0:
        token = logits.argmax(dim=-1)
    else:
        cumulative = log_p.exp().cumsum(dim=-1)
        point = torch.from_numpy(uniform).to(cumulative.dtype).to(logits.device)[:, None] * cumulative[:, -1:]
        last = (cumulative < cumulative[:, -1:]).sum(dim=-1)  # the last token with any probability
        token = torch.minimum(torch.searchsorted(cumulative, point, right=True)[:, 0], last)
    return token, log_p.gather(1, token[:, None])[:, 0]
