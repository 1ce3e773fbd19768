"""Advantages from a reward and its group (all in float64 where the device has it; unscored rows get 0).

| estimator | A_i | source | TRL | verl |
|---|---|---|---|---|
| `GroupStd` | (R_i - mean_g) / (std_g + eps) | 2402.03300 section 4.1; 2507.18071 eq 6 | scale_rewards="group" | grpo |
| `GroupMean` | R_i - mean_g | 2503.20783 | scale_rewards="none" | norm_adv_by_std_in_grpo=False |
| `RLOO` | R_i - mean of the others = n/(n-1) (R_i - mean_g) | 2402.14740 | RLOOTrainer | rloo |
| `LitePPO` | (R_i - mean_g) / (std_batch + eps) | 2508.08221 (LitePPO) | scale_rewards="batch" | - |

std is the unbiased one (n - 1). A group whose scored rewards are all equal, or with one scored member, gets 0.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state
from gspo.advantages.statistics import GroupStatistics, group_statistics, scaled


def centred(batch: AdvantageInput) -> tuple[Float[Tensor, "B"], GroupStatistics]:
    """R - mean_g, exactly 0 where the group has no spread or the row no score."""
    group = group_statistics(batch.total, batch.group)
    usable = group.is_scored & group.has_spread
    return (batch.total.to(group.mean.dtype) - group.mean).masked_fill(~usable, 0.0), group


@dataclass(frozen=True, kw_only=True)
class GroupStd:
    name: Literal["group_std"] = "group_std"
    eps: float = 1e-4
    """Added to the standard deviation (TRL's value; verl uses 1e-6; the GSPO paper states none)."""

    traits: ClassVar[EstimatorTraits] = EstimatorTraits()
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        value, group = centred(batch)
        return scaled(value, group.std, self.eps), state


@dataclass(frozen=True, kw_only=True)
class GroupMean:
    name: Literal["group_mean"] = "group_mean"

    traits: ClassVar[EstimatorTraits] = EstimatorTraits()
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        return centred(batch)[0], state


@dataclass(frozen=True, kw_only=True)
class RLOO:
    name: Literal["rloo"] = "rloo"

    traits: ClassVar[EstimatorTraits] = EstimatorTraits()
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        value, group = centred(batch)
        return value * group.count / (group.count - 1).clamp(min=1), state


@dataclass(frozen=True, kw_only=True)
class LitePPO:
    name: Literal["lite_ppo"] = "lite_ppo"
    eps: float = 1e-4
    """Added to the standard deviation."""

    traits: ClassVar[EstimatorTraits] = EstimatorTraits()
    init = staticmethod(no_state)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        value, group = centred(batch)
        scored = batch.total[group.is_scored].to(value.dtype)
        std = scored.std(correction=1) if len(scored) > 1 else scored.new_zeros(())
        return scaled(value, std, self.eps), state
