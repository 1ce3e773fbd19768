"""Importance ratios, kept as logarithms until the end. Pure; 0 outside the mask."""

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.types import Scores, Step


def token_log_ratio(scores: Scores, step: Step) -> Float[Tensor, "B U"]:
    """log pi(y_t) - log pi_old(y_t) per unit (DeepSeekMath 2402.03300, eq 3)."""
    return (scores.logprobs - step.old_logprobs).masked_fill(~step.mask, 0.0)


def reference_log_ratio(scores: Scores, step: Step) -> Float[Tensor, "B U"]:
    """log pi(y_t) - log pi_reference(y_t) per unit."""
    assert step.reference_logprobs is not None
    return (scores.logprobs - step.reference_logprobs).masked_fill(~step.mask, 0.0)


def unit_average(value: Float[Tensor, "B U"], step: Step) -> Float[Tensor, "B 1"]:
    """Mean over the row's own trained units (at least 1, so an empty row has 0). `value` is 0 outside the mask."""
    return value.sum(dim=1, keepdim=True) / step.mask.sum(dim=1, keepdim=True).clamp(min=1)


def sequence_log_ratio(scores: Scores, step: Step) -> Float[Tensor, "B 1"]:
    """Mean of the token log-ratios over the row's trained units (GSPO 2507.18071, eq 7, before the exponential)."""
    return unit_average(token_log_ratio(scores, step), step)


def straight_through(scores: Scores) -> Float[Tensor, "B U"]:
    """0 in value, log pi in gradient: makes a stopped ratio's gradient reach each unit (GSPO-token, eq 14)."""
    return scores.logprobs - scores.logprobs.detach()


def bounded(log_ratio: Float[Tensor, "*shape"], limit: float = 20.0) -> Float[Tensor, "*shape"]:
    """Clamped to +-limit before an exponential."""
    return torch.clamp(log_ratio, -limit, limit)
