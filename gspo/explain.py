"""Why each unit counts as it does: the explanations that several objectives share."""

from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.ratio import sequence_log_ratio, token_log_ratio
from gspo.surrogate import bound_hit, per_row, per_unit
from gspo.types import Explanation, Scores, Step


@runtime_checkable
class Clipped(Protocol):
    """An objective that clips its ratio between two bounds."""

    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...


def explain_token_clip(objective: Clipped, scores: Scores, step: Step) -> Explanation:
    """The explanation shared by objectives that clip the token ratio between clip_low and clip_high."""
    log_ratio = token_log_ratio(scores, step)
    advantage = per_unit(step.advantage, log_ratio)
    bound = bound_hit(log_ratio.exp(), advantage, objective.clip_low, objective.clip_high)
    band = min(objective.clip_low, objective.clip_high)
    return Explanation(log_ratio=log_ratio, bound=bound.expand_as(log_ratio), level="token", band=band)


def explain_sequence_clip(objective: Clipped, scores: Scores, step: Step) -> Explanation:
    """The same for one ratio per sequence, repeated over its units."""
    log_ratio = sequence_log_ratio(scores, step)
    advantage = per_row(step.advantage, log_ratio, otherwise="GSPOToken")
    bound = bound_hit(log_ratio.exp(), advantage, objective.clip_low, objective.clip_high)
    log_ratio, bound = log_ratio.expand_as(step.mask), bound.expand_as(step.mask)
    band = min(objective.clip_low, objective.clip_high)
    return Explanation(log_ratio=log_ratio, bound=bound, level="sequence", band=band)


def explain_ungated(
    log_ratio: Float[Tensor, "B #U"], step: Step, level: Literal["sequence", "token"], band: float = float("inf")
) -> Explanation:
    """For objectives that cut nothing off."""
    log_ratio = log_ratio.expand_as(step.mask)
    return Explanation(log_ratio=log_ratio, bound=torch.zeros_like(log_ratio).long(), level=level, band=band)


def explain_by_gradient(objective: Any, scores: Scores, step: Step, band: float) -> Explanation:
    """For mixed clips of tokens: a bound is hit where the gain has no gradient in the token although A is not 0."""
    leaf = scores.logprobs.detach().requires_grad_(True)
    with torch.enable_grad():
        gain = objective.gain(replace(scores, logprobs=leaf), step)
        (gradient,) = torch.autograd.grad(gain.sum(), leaf)
    sign = per_unit(step.advantage, leaf).sign().expand_as(leaf)
    bound = torch.where(step.mask & (gradient == 0), sign, torch.zeros_like(sign)).long()
    return Explanation(log_ratio=token_log_ratio(scores, step), bound=bound, level="token", band=band)
