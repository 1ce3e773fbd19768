"""The sampler of a policy over classes: there is nothing to draw, all classes are the completion."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from gspo.policies.representation import RepresentationNetwork
from gspo.samplers.base import SampleRequest
from gspo.types import Completion


class ClassSet:
    """Every class of every question, with the log-probs of the weights as they are now: the old policy's."""

    scores: ClassVar[Literal["exact"]] = "exact"

    def __init__(self, network: RepresentationNetwork, images_at_once: int) -> None:
        self.network = network
        self.images_at_once = images_at_once
        self.version = 0

    def sync_weights(self, policy: object, version: int) -> None:
        """The weights are the policy's own: only the version moves."""
        self.version = version

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """One completion for each request, whatever its `n`: units are classes, one question after another."""
        found: list[list[Completion]] = []
        for start in range(0, len(requests), self.images_at_once):
            part = requests[start : start + self.images_at_once]
            logprobs = self.network.logprobs(tuple(request.inputs for request in part))
            _, questions, classes = logprobs.shape
            ids = tuple(range(classes)) * questions
            found += [[self._completion(ids, row)] for row in logprobs.flatten(1).cpu().tolist()]
        return found

    def _completion(self, ids: tuple[int, ...], logprobs: list[float]) -> Completion:
        return Completion(ids=ids, logprobs=tuple(logprobs), policy_version=self.version, finish_reason="stop")
