"""The collector seam: a cursor into the data in, finished groups and the new cursor out."""

from dataclasses import dataclass, field
from typing import Protocol

from gspo.types import Group


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
    """Distinct messages of failed rewards."""


class Collector(Protocol):
    def collect(self, cursor: int, step: int) -> Collected: ...
