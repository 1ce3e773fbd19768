"""The policy seam: log-probs, forward and backward of some rows, one optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gspo.objectives.base import UnitObjective
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one forward-backward over a step gave, rows in the order of the step; all detached, on the CPU."""

    loss: float
    logprobs: Tensor
    """[B,U] of the policy that this update started from."""
    entropy: Tensor
    """[B,U] nats; 0 outside the mask."""
    unit_gradient: Tensor
    """[B,U] derivative of the step's loss in each log-prob: how much each unit pulls."""
    explanation: Explanation
    replay: tuple[Any, ...] | None = None
    """[B] see `Scores`."""


class Policy(Protocol):
    """May not know objectives beyond their methods, nor rewards, environments or samplers."""

    def logprobs(self, step: Step) -> Scores: ...
    def forward_backward(self, step: Step, weight: Sequence[Tensor], terms: Sequence[UnitObjective]) -> StepResult: ...
    def optim_step(self, lr: float) -> float: ...
