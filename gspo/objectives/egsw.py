"""Entropy-Guided Sequence Weighting (EGSW): a group softmax of advantage and entropy on any clipped objective.

Vanlioglu 2025, https://arxiv.org/abs/2503.22456

    w_it   proportional to exp((A_it + alpha H_it) / temperature), a softmax over the group's sequences live at t
    J_EGSW = J with every unit's term times sg[w_it] x (number of those sequences)

level "sequence" uses A_i and the mean entropy of the sequence instead. With uniform weights this is the base
objective. Where A < 0 the weight is smaller: bad samples are discounted rather than pushed harder. Certainty: the
weight is quoted by one secondary source; ours are its detachment, the restriction to live sequences, the factor that
undoes 1/G, the reading of "step t" as the position in the completion, and alpha = 0.1, temperature = 1 (the paper's
values are not known to us and it reports them to be sensitive). TRL, verl: no counterpart.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.groups import group_softmax, group_sum
from gspo.objectives.base import Traits
from gspo.objectives.dual_clip import ClippedObjective
from gspo.objectives.grpo import GRPO
from gspo.ratio import unit_average
from gspo.surrogate import per_unit
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class EGSW:
    name: Literal["egsw"] = "egsw"
    alpha: float = 0.1
    """Weight of the entropy (nats) beside the advantage."""
    temperature: float = 1.0
    """Temperature of the softmax; towards 0 only the best of a group trains."""
    level: Literal["token", "sequence"] = "token"
    """Softmax at every position, or once per sequence."""
    base: ClippedObjective = field(default_factory=GRPO)
    """The objective that is weighted."""

    @property
    def traits(self) -> Traits:
        return replace(
            self.base.traits,
            needs=(*self.base.traits.needs, "entropy"),
            keeps_groups_whole=True,
            is_policy_gradient=False,
            is_derivative=False,
        )

    def counts(self, step: Step) -> Counts:
        return self.base.counts(step)

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        return self.base.weights(step, counts)

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        return self.base.gain(scores, step) * self.group_weight(scores, step)

    def group_weight(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        """sg[w_it] times the number of live sequences: 1 where a group is uniform; detached."""
        assert scores.entropy is not None
        entropy = scores.entropy.detach()
        if self.level == "sequence":
            entropy = unit_average(entropy.masked_fill(~step.mask, 0.0), step).expand_as(entropy)
        is_live = step.mask if self.level == "token" else step.mask.any(dim=1, keepdim=True).expand_as(step.mask)
        preference = (per_unit(step.advantage, entropy) + self.alpha * entropy) / self.temperature
        number = group_sum(is_live.to(entropy.dtype), step.group)
        return group_softmax(preference, is_live, step.group) * number

    def explain(self, scores: Scores, step: Step) -> Explanation:
        return self.base.explain(scores, step)
