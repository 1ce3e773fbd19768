"""The collector seam: a cursor into the data in, finished groups and the new cursor out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from gspo.types import Group

Facts = dict[str, tuple[float, float]]
"""Numbers for the metrics as (sum, weight), which add up over waves; their mean is shown, or the sum at weight 0."""


def added(facts: Iterable[Facts]) -> Facts:
    """Facts of several waves as those of one."""
    total: Facts = {}
    for some in facts:
        for name, (value, weight) in some.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + value, before[1] + weight)
    return total


def shown(facts: Facts) -> dict[str, float]:
    """Means, and sums of what has no weight."""
    return {name: value / weight if weight else value for name, (value, weight) in facts.items()}


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A rollout batch."""

    groups: tuple[Group, ...]
    cursor: int
    """Number of prompts consumed since the start of the run: *trained up to*, never sampled up to."""
    seconds: dict[str, float]
    """Time by phase: sample, reward."""
    rounds: int = 1
    prompts_drawn: int = 0
    """Prompts sampled to get these groups (more than the groups under dynamic sampling)."""
    errors: tuple[str, ...] = field(default=())
    """Distinct messages of failed rewards and environments."""
    facts: Facts = field(default_factory=dict)
    """What the collector and its environments counted."""


class Collector(Protocol):
    def collect(self, cursor: int, step: int) -> Collected: ...
