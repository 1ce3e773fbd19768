"""What the loop asks of an objective, and the parts that several objectives share as plain functions."""

from typing import ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.ratio import token_log_ratio
from gspo.surrogate import bound_hit, per_unit
from gspo.types import Explanation, Scores, Step

Need = Literal["reference", "entropy", "old"]
"""What a term reads beyond the current log-probs: a frozen reference, the entropy, the old log-probs."""


@runtime_checkable
class UnitObjective(Protocol):
    """A term whose gain is per unit. `-(gain * weight).sum()` is its loss; weights are made on the whole step."""

    @property
    def name(self) -> str: ...

    needs: ClassVar[tuple[Need, ...]]
    is_inert_at_zero_advantage: ClassVar[bool]
    """Whether a row of advantage 0 has no gradient; such rows skip the network (a law measures it)."""

    def counts(self, step: Step) -> Counts: ...
    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]: ...
    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]: ...
    def explain(self, scores: Scores, step: Step) -> Explanation | None: ...


@runtime_checkable
class TokenClipped(Protocol):
    """An objective that clips the token ratio between two bounds."""

    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...


def explain_token_clip(objective: TokenClipped, scores: Scores, step: Step) -> Explanation:
    """The explanation shared by objectives that clip the token ratio between clip_low and clip_high."""
    log_ratio = token_log_ratio(scores, step)
    advantage = per_unit(step.advantage, log_ratio)
    bound = bound_hit(log_ratio.exp(), advantage, objective.clip_low, objective.clip_high)
    return Explanation(log_ratio=log_ratio, bound=bound, level="token")
