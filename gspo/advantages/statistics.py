"""Statistics over groups and batches that several estimators share. Pure; NaN marks a row without a score."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """Per row: its group's number of scored rows, mean, unbiased std and whether the group has any spread."""

    count: Float[Tensor, "B"]
    mean: Float[Tensor, "B"]
    std: Float[Tensor, "B"]
    has_spread: Bool[Tensor, "B"]
    is_scored: Bool[Tensor, "B"]


def group_statistics(reward: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> GroupStatistics:
    """Statistics over the scored (non-NaN) rows of each group, in float64 where the device has it."""
    is_scored = ~reward.isnan()
    reward = reward.to(torch.float32 if reward.device.type == "mps" else torch.float64)
    value = reward.masked_fill(~is_scored, 0.0)
    _, position = group.unique(return_inverse=True)
    groups = int(position.max()) + 1 if len(position) else 0
    total = lambda x: value.new_zeros(groups).index_add(0, position, x)[position]  # noqa: E731
    number = total(is_scored.to(value.dtype))
    mean = total(value) / number.clamp(min=1)
    deviation = (value - mean).masked_fill(~is_scored, 0.0)
    std = (total(deviation.square()) / (number - 1).clamp(min=1)).sqrt()
    extreme = lambda x, how: value.new_zeros(groups).scatter_reduce(0, position, x, how, include_self=False)[position]  # noqa: E731
    highest = extreme(reward.masked_fill(~is_scored, -torch.inf), "amax")
    lowest = extreme(reward.masked_fill(~is_scored, torch.inf), "amin")
    return GroupStatistics(
        count=number, mean=mean, std=std, has_spread=(number > 1) & (highest > lowest), is_scored=is_scored
    )


def scaled(value: Float[Tensor, "B"], std: Tensor, eps: float) -> Float[Tensor, "B"]:
    """value / (std + eps), 0 where the value is, even with eps = 0."""
    return value / (std + eps).clamp(min=torch.finfo(value.dtype).tiny)


def whitened(
    value: Float[Tensor, "B *U"], weight: Float[Tensor, "B *U"], eps: float, is_in_root: bool = False
) -> Float[Tensor, "B *U"]:
    """(value - mean) / (std + eps) with weighted mean and unbiased std; entries of weight 0 are left out and get 0.

    With `is_in_root` the divisor is sqrt(variance + eps), as verl has it.
    """
    number = weight.sum()
    mean = (value * weight).sum() / number.clamp(min=1)
    if mean.abs() < ROUNDING:  # centred already: rounding must not give rows without spread an advantage
        mean = torch.zeros_like(mean)
    centred = torch.where(weight > 0, value - mean, torch.zeros_like(value))
    variance = (centred.square() * weight).sum() / (number - 1).clamp(min=1)
    return centred / ((variance + eps).sqrt() if is_in_root else variance.sqrt() + eps)


ROUNDING = 1e-12
