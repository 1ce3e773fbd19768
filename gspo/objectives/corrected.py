"""An objective under detached multipliers: `Corrected(base, corrections)`, made by the trainer from `corrections`.

Those that read stored values are folded into the weights once per step; those that read the current log-probs (OPSM),
or old ones that the forward pass brings (`Step.old_from_forward`), multiply the gain, row by row. Denominators are the
base's own. A term that the base adds (TRPA's KL) is left alone.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from gspo.averaging import Counts
from gspo.corrections import Correction, Reweighting
from gspo.objectives.base import Composite, Traits, UnitObjective
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class Corrected:
    base: UnitObjective
    corrections: tuple[Reweighting, ...]

    def __post_init__(self) -> None:
        names = [correction.name for correction in self.corrections]
        if len(set(names)) < len(names):
            raise ValueError(f"corrections: each may stand there once, got {', '.join(names)}")

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def traits(self) -> Traits:
        needs = (*self.base.traits.needs, *(need for c in self.corrections for need in c.needs))
        return replace(self.base.traits, needs=tuple(dict.fromkeys(needs)))

    @property
    def adds(self) -> tuple[UnitObjective, ...]:
        return self.base.adds if isinstance(self.base, Composite) else ()

    def counts(self, step: Step) -> Counts:
        return self.base.counts(step)

    def weights(self, step: Step, counts: Counts) -> Float[Tensor, "B U"]:
        weight = self.base.weights(step, counts)
        for correction in self.corrections:
            if correction.when == "stored" and not _waits(correction, step):
                weight = weight * correction(step).weight
        return weight

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        gain = self.base.gain(scores, step)
        for correction in self.corrections:
            if correction.when == "current" or _waits(correction, step):
                gain = gain * correction(step, scores).weight
        return gain

    def stored(self, step: Step) -> dict[str, Correction]:
        """Corrections of the whole step from stored values, by name."""
        return {c.name: c(step) for c in self.corrections if c.when == "stored"}

    def current(self, step: Step, scores: Scores) -> dict[str, Correction]:
        """Corrections of these rows that read the current log-probs, by name."""
        return {c.name: c(step, scores) for c in self.corrections if c.when == "current"}

    def explain(self, scores: Scores, step: Step) -> Explanation | None:
        return self.base.explain(scores, step)


def _waits(correction: Reweighting, step: Step) -> bool:
    """A correction that reads old log-probs is a matter of each row, and may wait for them; one over the whole step
    (top_entropy) reads none."""
    return step.old_from_forward and "old" in correction.needs
