"""How units add up, as data: weights made once per optimizer step, before any forward pass.

A loss is `-(gain * weight).sum()`. The denominators are integers counted over the whole step (all micro-batches,
all ranks), so any split of the rows adds up exactly to the same loss and gradient.

| function | weight of a unit | TRL `loss_type` | verl `loss_agg_mode` |
|---|---|---|---|
| `row_mean` | 1 / (rollouts x units of the rollout) | grpo | seq-mean-token-mean |
| `unit_mean` | 1 / units of the step | dapo | token-mean |
| `row_sum` | 1 / rollouts | luspo | seq-mean-token-sum |
| `constant_mean` | 1 / (rollouts x max_length) | dr_grpo | seq-mean-token-sum-norm |

Where one rollout became several rows, its share is divided over its rows by trained units.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.types import Step

Counts = dict[str, int]


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it (Apple's MPS does not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def count(step: Step) -> Counts:
    """Additive integers of a step: rollouts (rows without a trained unit included) and trained units."""
    return {"rollouts": int(step.rollout.unique().numel()), "units": int(step.mask.sum())}


def _units_of_rollout(step: Step) -> Float[Tensor, "B 1"]:
    """[B,1] trained units of the rollout that each row belongs to, at least 1."""
    _, position = step.rollout.unique(return_inverse=True)
    units = step.mask.sum(dim=1)
    totals = torch.zeros(int(position.max()) + 1 if len(position) else 0, dtype=units.dtype, device=units.device)
    return totals.index_add(0, position, units)[position].clamp(min=1)[:, None].to(exact_dtype(units.device))


def row_mean(step: Step, counts: Counts) -> Float[Tensor, "B U"]:
    """(1/B) sum_i (1/|y_i|) sum_t: every rollout weighs the same, whatever its length."""
    mask = step.mask.to(exact_dtype(step.mask.device))
    return mask / (_units_of_rollout(step) * max(counts["rollouts"], 1))


def row_sum(step: Step, counts: Counts) -> Float[Tensor, "B U"]:
    """(1/B) sum_i sum_t: a rollout weighs as much as it is long."""
    return step.mask.to(exact_dtype(step.mask.device)) / max(counts["rollouts"], 1)


def unit_mean(step: Step, counts: Counts) -> Float[Tensor, "B U"]:
    """(1/N) sum_i sum_t over the N trained units of the whole optimizer step."""
    return step.mask.to(exact_dtype(step.mask.device)) / max(counts["units"], 1)


def constant_mean(step: Step, counts: Counts, max_length: int) -> Float[Tensor, "B U"]:
    """(1/B) (1/max_length) sum_i sum_t: a divisor that depends on nothing the policy chose."""
    return step.mask.to(exact_dtype(step.mask.device)) / (max(counts["rollouts"], 1) * max_length)
