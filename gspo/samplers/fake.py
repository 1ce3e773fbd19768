"""A sampler that says what it is told: for tests of collectors, rewards and the loop, without a model."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from gspo.samplers.base import SampleRequest
from gspo.types import Completion


class FakeSampler:
    """`say(request, index)` gives the ids of a completion (`index`: its position in the group); every token has
    log-probability `logprob`."""

    scores: ClassVar[Literal["exact"]] = "exact"

    def __init__(self, say: Callable[[SampleRequest, int], Sequence[int]], stop_id: int, logprob: float = -1.0) -> None:
        self.say = say
        self.stop_id = stop_id
        self.logprob = logprob
        self.version = 0

    def sync_weights(self, policy: object, version: int) -> None:
        self.version = version

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        return [[self._completion(r, i) for i in r.indices or range(r.n)] for r in requests]

    def _completion(self, request: SampleRequest, index: int) -> Completion:
        ids = tuple(self.say(request, index))[: request.max_completion_tokens]
        return Completion(
            ids=ids,
            logprobs=(self.logprob,) * len(ids),
            policy_version=self.version,
            finish_reason="stop" if ids and ids[-1] == self.stop_id else "length",
        )
