"""What turns a ratio and an advantage into a gain. Pure."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def clipped_surrogate(
    ratio: Float[Tensor, "B #U"], advantage: Float[Tensor, "B #U"], clip_low: float, clip_high: float
) -> Float[Tensor, "B #U"]:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A): PPO's pessimistic surrogate (1707.06347, eq 7)."""
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * advantage, clipped * advantage)


def bound_hit(
    ratio: Float[Tensor, "B #U"], advantage: Float[Tensor, "B #U"], clip_low: float, clip_high: float
) -> Int[Tensor, "B #U"]:
    """-1 or +1 where `clipped_surrogate` has no gradient because of the lower or upper bound, else 0."""
    low = (advantage < 0) & (ratio < 1 - clip_low)
    high = (advantage > 0) & (ratio > 1 + clip_high)
    return high.long() - low.long()


def per_unit(advantage: Tensor, like: Tensor) -> Float[Tensor, "B #U"]:
    """An advantage of shape [B] or [B,U] as something that broadcasts over units."""
    return (advantage if advantage.ndim == 2 else advantage[:, None]).to(like.dtype)


def per_row(advantage: Tensor, like: Tensor, otherwise: str) -> Float[Tensor, "B 1"]:
    """A per-sequence advantage as [B,1]; a per-unit one is refused with the name of the objective to use."""
    if advantage.ndim != 1:
        raise ValueError(
            f"this objective has one ratio per sequence and takes one advantage per sequence [B], "
            f"got {tuple(advantage.shape)}; for an advantage per token use {otherwise}"
        )
    return advantage[:, None].to(like.dtype)


def by_sign(advantage: Float[Tensor, "B #U"], positive: float, otherwise: float) -> Float[Tensor, "B #U"]:
    """A constant chosen by the sign of the advantage."""
    return torch.where(advantage > 0, advantage.new_tensor(positive), advantage.new_tensor(otherwise))


def sigmoid_gate(ratio: Float[Tensor, "B U"], tau: Float[Tensor, "B #U"]) -> Float[Tensor, "B U"]:
    """log of 4/tau sigmoid(tau (ratio - 1)): SAPO's gate (2511.20347, eq 6)."""
    return math.log(4) - tau.log() + torch.nn.functional.logsigmoid(tau * (ratio - 1))


def rescaled_in_row(value: Float[Tensor, "B U"], mask: Bool[Tensor, "B U"]) -> Float[Tensor, "B U"]:
    """(value - row minimum) / (row maximum - row minimum) over the masked units; 1/2 where a row has no range."""
    low = value.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    high = value.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    width = high - low
    scaled = (value - low) / width.clamp(min=FLAT)
    return torch.where(mask & (width >= FLAT), scaled, torch.full_like(value, 0.5))


FLAT = 1e-6
"""Range of a row's values below which they count as equal."""
