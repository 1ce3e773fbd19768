"""What a sink receives and what it must do."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one step has to say. Example: Record(step=12, metrics={"reward": 0.4}, sample="3+4= -> 7 (1)")."""

    step: int
    """1-based number of the rollout batch; 0 is the evaluation before training."""
    metrics: dict[str, float]
    """Logged names (docs/metrics.md) and their values; NaN where a value does not exist."""
    sample: str = ""
    """One sampled "prompt -> completion (reward)" to read."""


class Sink(Protocol):
    """A place where records go. Nothing reads them back into training."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...
