"""What an advantage estimator sees, declares and gives."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

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
    """Given by the environment for each turn; NaN where it gave none."""


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
