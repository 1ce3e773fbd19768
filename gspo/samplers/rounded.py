"""A sampler on a copy of the weights in another dtype: what an inference engine in half precision is to a trainer."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from gspo.samplers.base import Sampler, SampleRequest, SamplesEach
from gspo.types import Completion


def rounded_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters in `dtype`; buffers (rotary frequencies) as they are."""
    copied = copy.deepcopy(model).requires_grad_(False).eval()
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied


class Rounded:
    """Wraps a sampler on `copied`, which takes over the weights of `source` before anything is sampled."""

    scores: ClassVar[Literal["exact"]] = "exact"

    def __init__(self, sampler: Sampler, source: nn.Module, copied: nn.Module) -> None:
        self.sampler, self.source, self.copied = sampler, source, copied

    def sync_weights(self, policy: Any, version: int) -> None:
        self.sampler.sync_weights(policy, version)

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        self._take_over()
        return self.sampler.sample(requests)

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        assert isinstance(self.sampler, SamplesEach)
        self._take_over()
        yield from self.sampler.sample_each(requests)

    @torch.no_grad()
    def _take_over(self) -> None:
        """Held-out questions are asked between two steps, so every call has the newest weights."""
        for to, source in zip(self.copied.parameters(), self.source.parameters(), strict=True):
            to.copy_(source)
