"""The sampler seam: prompts in, completions with log-probabilities and a policy version out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from gspo.sampling import Sampling
from gspo.types import Completion


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """`n` completions of one prompt. (seed, step, prompt_id, index, turn) names the random stream of each."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    step: int
    prompt_id: int
    sampling: Sampling
    turn: int = 0
    """Which completion of a rollout it is; also what sets drafts and their refinements apart."""
    indices: tuple[int, ...] = ()
    """[n] positions of the completions in their group; () stands for 0..n-1."""
    inputs: Any = None
    """What the prompt holds beside its ids (images)."""
    limit: int = 0
    """Tokens after which these completions are cut, where that is less than `sampling` allows; 0 adds no limit."""

    def streams(self) -> list[tuple[int, int, int, int]]:
        """The counters of each completion's random stream; those of turn 0 do not know of turns."""
        indices = self.indices or range(self.n)
        return [(self.seed, self.step, self.prompt_id, i + (self.turn << 32)) for i in indices]

    @property
    def max_completion_tokens(self) -> int:
        allowed = self.sampling.max_completion_tokens
        return min(self.limit, allowed) if self.limit else allowed


class SamplerLost(ValueError):
    """What samples is gone. The run has lost nothing by it: it saves its state and can be resumed."""


class Sampler(Protocol):
    """A wave of requests is sampled together: what is batched with what is an argument, not a matter of arrival.

    `scores` says what the returned log-probabilities mean: "exact" (of the distribution drawn from), "guided", or
    "none" (then old log-probs come from the policy).
    """

    scores: Literal["exact", "guided", "none"]

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]: ...
    def sync_weights(self, policy: Any, version: int) -> None: ...


@runtime_checkable
class TakesSnapshots(Protocol):
    """A sampler with weights of its own, which can be told new ones while it samples."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]: ...
    def snapshot(self, policy: Any, version: int) -> Callable[[], None]:
        """Keep the policy's weights as they are now; the result puts them in place, and is called between two waves,
        from whichever thread."""
        ...


@runtime_checkable
class Closes(Protocol):
    """A sampler that holds a process or a folder, which it gives back."""

    def close(self) -> None: ...


@runtime_checkable
class SamplesEach(Protocol):
    """A sampler that hands over each group when its last completion has ended: (index in `requests`, completions)."""

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]: ...
