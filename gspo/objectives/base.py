"""What the loop asks of an objective, and what an objective declares of itself."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.types import Explanation, Need, Scores, Step


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an objective declares of itself. The trainer acts on each line, and a law measures it."""

    needs: tuple[Need, ...] = ("old",)
    reads_advantage: bool = True
    """False for losses on rewards or preferences alone."""
    takes_unit_advantage: bool = True
    """Whether an advantage per unit [B,U] is taken, beside one per row."""
    keeps_groups_whole: bool = False
    """A row's gain reads the other rows of its group, so a micro-batch holds whole groups."""
    counts_empty_rows: bool = True
    """Whether a row without a trained unit counts in the denominator (means over rollouts) or not."""
    skips_zero_advantage: bool = True
    """Whether a row (with `keeps_groups_whole`: a group) of advantage 0 has no gradient and may skip the network."""
    is_policy_gradient: bool = True
    """At ratio 1 the gradient is -advantage x weight: REINFORCE under the objective's own averaging."""
    is_derivative: bool = True
    """False where a stop-gradient makes the gradient another than the derivative of the value, by design."""
    is_on_policy: bool = False
    """Has no ratio: right for one update per rollout batch only, and the trainer refuses more."""
    min_group: int = 1
    """Completions per prompt below which there is nothing to learn from."""


GROUP_LOSS = Traits(
    reads_advantage=False, keeps_groups_whole=True, counts_empty_rows=False, skips_zero_advantage=False,
    is_policy_gradient=False, min_group=2,
)  # fmt: skip
"""What losses on rewards of a group, or on pairs from it, have in common."""


@runtime_checkable
class UnitObjective(Protocol):
    """A term whose gain is per unit. `-(gain * weight).sum()` is its loss; weights are made on the whole step.

    A loss on pairs or whole groups gives each row its share of them, repeated over the row's units.
    """

    @property
    def name(self) -> str: ...
    @property
    def traits(self) -> Traits: ...

    def counts(self, step: Step) -> Counts: ...
    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]: ...
    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]: ...
    def explain(self, scores: Scores, step: Step) -> Explanation | None: ...


@runtime_checkable
class Composite(Protocol):
    """An objective whose paper defines its loss with a further term of other averaging."""

    @property
    def adds(self) -> tuple[UnitObjective, ...]: ...


@runtime_checkable
class Stateful(Protocol):
    """A term that moves between updates by its own summed statistics; its state is in TrainState."""

    def init(self) -> Any: ...
    def at(self, state: Any) -> UnitObjective: ...
    def update(self, state: Any, totals: dict[str, float]) -> Any: ...
