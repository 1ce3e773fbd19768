"""Rows of a group together: sums, softmax and pairs over the live rows of each group. Pure.

A row is live when it has a trained unit. Whoever uses these needs whole groups in every micro-batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo.averaging import exact_dtype
from gspo.types import Step


def live_rows(step: Step) -> Bool[Tensor, "B"]:
    return step.mask.any(dim=1)


def group_sum(value: Float[Tensor, "B *U"], group: Int[Tensor, "B"]) -> Float[Tensor, "B *U"]:
    """Sum over the rows of each group, given back to every row."""
    _, position = group.unique(return_inverse=True)
    groups = int(position.max()) + 1 if len(position) else 0
    return value.new_zeros(groups, *value.shape[1:]).index_add(0, position, value)[position]


def group_softmax(
    value: Float[Tensor, "B U"], is_member: Bool[Tensor, "B U"], group: Int[Tensor, "B"]
) -> Float[Tensor, "B U"]:
    """Softmax over the member rows of each group, column by column; 0 for the others."""
    _, position = group.unique(return_inverse=True)
    groups = int(position.max()) + 1 if len(position) else 0
    value = value.masked_fill(~is_member, -torch.inf)
    index = position[:, None].expand_as(value)
    highest = value.new_full((groups, value.shape[1]), -torch.inf).scatter_reduce(0, index, value, "amax")[position]
    share = (value - highest.masked_fill(highest.isinf(), 0.0)).exp().masked_fill(~is_member, 0.0)
    return share / group_sum(share, group).clamp(min=torch.finfo(share.dtype).tiny)


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of one group, as positions [M]. In a preference `first` is the better row."""

    first: Int[Tensor, "M"]
    second: Int[Tensor, "M"]

    def to_rows(self, value: Float[Tensor, "M"], like: Float[Tensor, "B U"]) -> Float[Tensor, "B U"]:
        """A value per pair as one per row: half of it to each of the two, repeated over the row's units."""
        half = value.new_zeros(like.shape[0]).index_add(0, self.first, value / 2).index_add(0, self.second, value / 2)
        return half[:, None].expand_as(like)


def all_pairs(step: Step) -> Pairs:
    """Every unordered pair of live rows of one group."""
    rows = len(step.group)
    return preference_pairs(step, torch.ones(rows, rows, dtype=torch.bool, device=step.group.device).triu(diagonal=1))


def preference_pairs(step: Step, better: Bool[Tensor, "B B"]) -> Pairs:
    """Every pair of live rows of one group in which row i is `better[i, j]` than row j."""
    live = live_rows(step)
    is_pair = better & (step.group[:, None] == step.group[None]) & live[:, None] & live[None]
    return Pairs(*is_pair.nonzero(as_tuple=True))


def row_share(step: Step) -> Float[Tensor, "B U"]:
    """1 / |y_i| on the trained units: with it a value repeated over a row's units counts once."""
    mask = step.mask.to(exact_dtype(step.mask.device))
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)


def known_rewards(step: Step, like: Float[Tensor, "B U"]) -> Float[Tensor, "B"]:
    """Rewards of the live rows, 0 for the others (whose reward may be missing)."""
    assert step.rewards is not None
    return torch.where(live_rows(step), step.rewards, torch.zeros_like(step.rewards)).to(like.dtype)
