"""What an advantage estimator sees, and the group statistics that several estimators share."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdvantageInput:
    """A whole rollout batch, scored: advantages are computed once, before it is cut into mini-batches."""

    rewards: Float[Tensor, "B K"]
    """One column per reward function; NaN where a reward could not be had."""
    total: Float[Tensor, "B"]
    """Weighted sum of the columns; NaN where the row could not be scored. Such a row leaves its group's statistics
    and gets advantage 0."""
    group: Int[Tensor, "B"]
    """Rows with the same number compete with each other."""
    length: Int[Tensor, "B"]
    """Completion units of each row."""
    mask: Bool[Tensor, "B U"] | None = None
    reward_weights: Float[Tensor, "K"] | None = None
    """Weights of the columns in `total`."""
    values: Float[Tensor, "B"] | None = None
    """A value estimate per row."""
    old_logprobs: Float[Tensor, "B U"] | None = None
    reference_logprobs: Float[Tensor, "B U"] | None = None
    turn: Int[Tensor, "B U"] | None = None
    """Which turn of its conversation a unit belongs to, from 0."""
    turn_rewards: Float[Tensor, "B T"] | None = None
    """The environment's reward of each turn; NaN where it gave none, or there is no such turn."""


@dataclass(frozen=True, kw_only=True)
class EstimatorTraits:
    """What an estimator declares of itself; the trainer and `gspo check` act on it before the first step."""

    needs: tuple[Literal["mask", "values", "reference", "turns"], ...] = ()
    """Optional fields of AdvantageInput that it reads."""
    gives_units: bool = False
    """Gives [B,U] instead of [B]."""
    is_stateful: bool = False
    is_on_policy: bool = False
    """Derived for one update per rollout batch; the trainer refuses more."""
    reward_columns: int = 0
    """Reward functions that it has weights for; 0 takes any number."""
    min_group: int = 2
    """Completions per prompt below which every advantage is 0."""


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Rewards in, advantages out ([B], or [B,U] for estimators per unit); state passed in and returned."""

    @property
    def name(self) -> str: ...
    @property
    def traits(self) -> EstimatorTraits: ...

    def init(self) -> Any: ...
    def __call__(self, batch: AdvantageInput, state: Any) -> tuple[Tensor, Any]: ...


def no_state() -> None:
    """`init` of an estimator that remembers nothing between steps."""


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
