"""The verifier seam: attempts of a phase in, a verdict on each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One saved completion, as a verifier reads it."""

    prompt_id: int
    """Number of the prompt since the start of the run."""
    prompt: str
    """As the model saw it."""
    text: str
    answer: str
    """The data's answer; "" where it has none."""
    reward: float
    is_cut: bool
    """Ended by a limit."""
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """Sampled ids, the end token included."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verifier says of an attempt."""

    is_correct: bool
    """The answer is right."""
    is_consistent: bool = True
    """The answer follows from the reasoning before it."""
    is_repetitive: bool = False
    note: str = ""
    """Why, for the file of pairs."""

    @property
    def is_sound(self) -> bool:
        """Right, for the reasons given, without going round in circles."""
        return self.is_correct and self.is_consistent and not self.is_repetitive


class Verifier(Protocol):
    """One verdict per attempt, in their order. May take its time: it runs between phases."""

    def __call__(self, attempts: Sequence[Attempt]) -> list[Verdict]: ...
