"""Estimators of KL(policy || other) from the log-probabilities of sampled units (Schulman 2020). Pure, [B,U].

With u = log pi_other - log pi: k1 = -u (unbiased value, may be negative), k2 = u^2/2 (its gradient on-policy is
that of the KL), k3 = exp(u) - u - 1 (unbiased, never negative; its gradient is not that of the KL). "unbiased" is
DeepSeek-V3.2's form: the importance ratio to the old policy, differentiated through, times k3.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3", "unbiased"]


def kl_estimate(
    logprobs: Float[Tensor, "B U"],
    other_logprobs: Float[Tensor, "B U"],
    estimator: KLEstimator,
    old_logprobs: Float[Tensor, "B U"] | None = None,
) -> Float[Tensor, "B U"]:
    """Per-unit estimate, in nats; `old_logprobs` is read by "unbiased" only."""
    u = other_logprobs - logprobs
    if estimator == "k1":
        return -u
    if estimator == "k2":
        return 0.5 * u.square()
    k3 = torch.expm1(u) - u
    if estimator == "k3":
        return k3
    assert old_logprobs is not None
    return (logprobs - old_logprobs).exp() * k3
