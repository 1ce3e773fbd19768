"""Adaptive entropy bonus: a coefficient that rises while entropy is at or below a target and falls above it.

He et al. 2025 (Skywork-OR1), https://arxiv.org/abs/2505.22312

    loss  = ... - [h_k <= target] c_k mean entropy                    h_k: mean entropy seen by update k - 1
    c_k+1 = min(c_k + delta, coef_max) if h_k+1 <= target else max(c_k - delta, coef_min)

(c, h) is the term's state: it lives in TrainState and moves once per optimizer update, by that update's summed
entropy. The first update has none (h starts at infinity). Departures: this is TRL's reading; the authors' own
controller wants entropy strictly below the target, starts with the bonus on, and moves once per rollout batch.
Certainty: read in TRL 1.16. TRL: use_adaptive_entropy with entropy_coef, entropy_coef_min/max/delta, entropy_target.
verl: no counterpart.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, unit_mean
from gspo.objectives.base import Traits
from gspo.objectives.penalty import penalty_traits
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class AdaptiveEntropy:
    name: Literal["adaptive_entropy"] = "adaptive_entropy"
    coef: float = 0.0
    """Coefficient to start from (c_0); outside a trainer, where nothing moves it, the coefficient itself."""
    target: float = 0.2
    """Mean entropy, in nats per token, that the coefficient steers to."""
    delta: float = 0.005
    """Change of the coefficient per optimizer update."""
    coef_min: float = 0.0
    """Smallest coefficient."""
    coef_max: float = 1.0
    """Largest coefficient."""

    traits: ClassVar[Traits] = penalty_traits("token", "entropy_gradient")
    counts = staticmethod(count)
    weights = staticmethod(unit_mean)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        assert scores.entropy is not None
        return self.coef * scores.entropy

    def explain(self, scores: Scores, step: Step) -> None:
        return None

    def init(self) -> list[float]:
        """[c, h] before the first update."""
        return [self.coef, float("inf")]

    def at(self, state: list[float]) -> "AdaptiveEntropy":
        """The term of one update."""
        coefficient, entropy = state
        return replace(self, coef=coefficient if entropy <= self.target else 0.0)

    def update(self, state: list[float], totals: dict[str, float]) -> list[float]:
        """The state after an update whose `totals` are the sums of `entropy` and `units` over its rows."""
        if not totals["units"]:
            return state
        entropy = totals["entropy"] / totals["units"]
        if entropy <= self.target:
            return [min(state[0] + self.delta, self.coef_max), entropy]
        return [max(state[0] - self.delta, self.coef_min), entropy]
