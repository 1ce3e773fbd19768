"""Importance ratios, kept as logarithms until the end. Pure; every function is [B,U] in, [B,U] or [B,1] out."""

from jaxtyping import Float
from torch import Tensor

from gspo.types import Scores, Step


def token_log_ratio(scores: Scores, step: Step) -> Float[Tensor, "B U"]:
    """log pi(y_t) - log pi_old(y_t) per unit; 0 outside the mask (DeepSeekMath 2402.03300, eq 3)."""
    return (scores.logprobs - step.old_logprobs).masked_fill(~step.mask, 0.0)


def sequence_log_ratio(scores: Scores, step: Step) -> Float[Tensor, "B 1"]:
    """Mean of the token log-ratios over the row's trained units (GSPO 2507.18071, eq 7, before the exponential).

    The divisor is the row's own number of trained units, at least 1, so an empty row has ratio 1.
    """
    units = step.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return token_log_ratio(scores, step).sum(dim=1, keepdim=True) / units
