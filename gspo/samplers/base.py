"""The sampler seam: prompts in, completions with log-probabilities and a policy version out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from gspo.sampling import Sampling
from gspo.types import Completion


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """`n` completions of one prompt. (seed, step, prompt_id, index) names the random stream of each."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    step: int
    prompt_id: int
    sampling: Sampling


class Sampler(Protocol):
    """A wave of requests is sampled together: what is batched with what is an argument, not a matter of arrival.

    `scores` says what the returned log-probabilities mean: "exact" (of the distribution drawn from), "guided", or
    "none" (then old log-probs come from the policy).
    """

    scores: Literal["exact", "guided", "none"]

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]: ...
    def sync_weights(self, policy: Any, version: int) -> None: ...


@runtime_checkable
class SamplesEach(Protocol):
    """A sampler that hands over each group when its last completion has ended: (index in `requests`, completions)."""

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]: ...
