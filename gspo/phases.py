"""Schedules: a run as phases over the one loop, again and again (VerIPO, 2505.19000).

A phase samples, as a run without phases does, or it learns from preference pairs that a verifier finds in the saved
rollouts of a sampling phase before it, and samples nothing. Which phase a step belongs to is a function of the step.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator

from gspo.limits import at_least
from gspo.verifiers.judge import Judge
from gspo.verifiers.own import Own
from gspo.verifiers.pairs import KINDS, Kind
from gspo.verifiers.rules import Rules

CHANGES = (
    "objective", "terms", "corrections", "advantage", "prompts_per_step", "group_size", "updates_per_step", "epochs",
    "micro_batch_tokens", "sampling", "collector", "schedule", "optimizer.lr",
)  # fmt: skip
"""Settings that a phase can change: what the loop reads anew for each."""
AnyVerifier = Annotated[Rules | Judge | Own, Discriminator("name")]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One entry of the schedule."""

    name: str
    """Named by `pairs_from`, and shown."""
    steps: int
    """Steps of one round of it."""
    pairs_from: str = ""
    """An earlier sampling phase, whose rollouts become the pairs of this one; empty samples."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What is different from the run's settings while this phase lasts, with dotted keys: {"optimizer.lr" = 5e-7}."""
    verifier: AnyVerifier = field(default_factory=Rules)
    """Reads the rollouts: rules, judge (a model behind an OpenAI-compatible endpoint), own (a function in a file)."""
    kinds: tuple[Kind, ...] = KINDS
    """Pairs to build: accuracy, consistency, reflective."""
    max_pair_tokens: int = 0
    """Tokens that a chosen completion may have; 0 sets no limit."""
    reflection: str = "{attempt}\nThat does not hold. The answer is {answer}"
    """Text of a reflective pair's chosen completion."""
    drop_solved: float = 0.0
    """Share of the prompts whose every attempt was right that are never drawn again (VerIPO: 0.8)."""
    reference: Literal["phase", "start"] = "phase"
    """What DPO compares with: the policy as it is when the phase begins, or as it was at the start of the run."""

    def __post_init__(self) -> None:
        at_least(self, f"phase {self.name!r}: ", 1, "steps")
        at_least(self, f"phase {self.name!r}: ", 0, "max_pair_tokens", "drop_solved")
        if self.drop_solved > 1:
            raise ValueError(f"phase {self.name!r}: drop_solved is {self.drop_solved}; it is a share, at most 1")


@dataclass(frozen=True, kw_only=True)
class Span:
    """The steps start .. end - 1 of one phase in one round."""

    index: int
    """Of the phase in the schedule."""
    phase: Phase
    round: int
    start: int
    end: int


def spans(phases: tuple[Phase, ...], steps: int) -> list[Span]:
    """The schedule over `steps` steps, the last span cut where they end."""
    found: list[Span] = []
    start = 0
    while start < steps:
        index, round = len(found) % len(phases), len(found) // len(phases)
        end = min(start + phases[index].steps, steps)
        found.append(Span(index=index, phase=phases[index], round=round, start=start, end=end))
        start = end
    return found


def source_of(span: Span, all_spans: list[Span]) -> Span:
    """The newest span of the phase that a span's pairs come from."""
    return next(
        other for other in reversed(all_spans[: all_spans.index(span)]) if other.phase.name == span.phase.pairs_from
    )


def refuse_unsound(phases: tuple[Phase, ...]) -> None:
    """Raises ValueError for a schedule that cannot run."""
    names = [phase.name for phase in phases]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two phases are called {twice[0]!r}: give one of them another name")
    for number, phase in enumerate(phases):
        earlier = [other.name for other in phases[:number] if not other.pairs_from]
        if phase.pairs_from and phase.pairs_from not in earlier:
            known = ", ".join(earlier) or "none"
            raise ValueError(
                f"phase {phase.name!r}: pairs_from = {phase.pairs_from!r} is no sampling phase before it (there are: "
                f"{known})"
            )
        if phase.drop_solved and not phase.pairs_from:
            raise ValueError(
                f"phase {phase.name!r}: drop_solved goes with pairs_from, whose verifier says what is solved"
            )
        allowed = lambda key: key in CHANGES or key.split(".")[0] in CHANGES  # noqa: E731
        if wrong := [key for key in phase.settings if not allowed(key)]:
            raise ValueError(
                f"phase {phase.name!r}: settings.{wrong[0]} belongs to the whole run; a phase can change: "
                f"{', '.join(CHANGES)}"
            )
