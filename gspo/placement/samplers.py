"""Samplers in Ray actors, each on its own copy of the weights.

A wave is cut into one share per actor: request i belongs to share i mod n. A share is always sampled as a whole, so
that what is batched with what, and with it every bit, follows from the wave and n alone, whoever dies meanwhile.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from gspo.placement.cluster import ensure_connected, first_line, in_bundle, own_group
from gspo.placement.config import PlacementConfig
from gspo.samplers.base import SampleRequest, SamplerLost, SamplesEach
from gspo.samplers.copied import copy_of
from gspo.types import Completion

Packed = list[tuple[np.ndarray, tuple[int, ...]]]
"""Parameters as bytes, which Ray shares between the processes of a machine, and their shapes."""


class SamplerActor:
    """One sampler and its model, in a process of Ray's. It begins without weights, so that none can be old."""

    def __init__(self, make: Callable[[nn.Module], Any], cpus: float, on_gpu: bool) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        self.make, self.on_gpu = make, on_gpu
        self.model: nn.Module | None = None
        self.sampler: Any = None
        self.has: int | None = None
        """Number of the weights it has."""

    def pid(self) -> int:
        return os.getpid()

    def sample_each(
        self, version: int, number: int, kept: "Kept", requests: list[SampleRequest]
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Groups as they end. What is `kept` is fetched if it is not here: the model, and the weights of `number`."""
        import ray

        if self.model is None:
            model = ray.get(kept.model)
            self.model = model.to("cuda") if self.on_gpu else model
            self.sampler = self.make(self.model)
        if self.has != number:
            self.has = None
            unpack(ray.get(kept.weights), self.model)
            self.has = number
        self.sampler.sync_weights(None, version)
        yield from self.sampler.sample_each(requests)


@dataclass(frozen=True)
class Kept:
    """References into Ray's object store, which live as long as the policy holds them."""

    model: Any
    weights: Any = None


class RaySamplers:
    """A sampler over Ray actors: each has what `make` gives for a model like `copied`, with the policy's parameters.

    An actor that dies is started again by Ray, where there is room, and asked for its share again by Ray, at most
    `settings.restarts` times under the same prompts.
    """

    def __init__(self, make: Callable[[nn.Module], Any], copied: nn.Module, settings: PlacementConfig) -> None:
        sampler = make(copied)
        if not isinstance(sampler, SamplesEach):
            raise ValueError(f"placement.samplers needs groups as they end, and {type(sampler).__name__} gives none")
        self.scores: Literal["exact", "guided", "none"] = sampler.scores  # type: ignore[attr-defined]
        self._settings = settings
        self._dtypes = [parameter.dtype for parameter in copied.parameters()]
        self._ray = ensure_connected(settings)
        self._number, self._version = 0, 0
        self._lock = Lock()
        self._kept = Kept(self._ray.put(copied))
        group, kind = own_group(), self._ray.remote(SamplerActor)
        self._actors = [
            kind.options(
                num_cpus=settings.sampler_cpus,
                num_gpus=settings.sampler_gpus,
                max_restarts=-1,
                max_task_retries=settings.restarts,
                scheduling_strategy=in_bundle(group, settings.bundle("sampler", i)),
            ).remote(make, settings.sampler_cpus, settings.sampler_gpus > 0)
            for i in range(settings.samplers)
        ]

    def pids(self) -> list[int]:
        """Of the processes, on their machines."""
        return self._ray.get([actor.pid.remote() for actor in self._actors], timeout=self._settings.deadline)

    def sync_weights(self, policy: Any, version: int) -> None:
        self.snapshot(policy, version)()

    def snapshot(self, policy: Any, version: int) -> Callable[[], None]:
        """The weights go into Ray's object store once, in the samplers' dtype; actors fetch them before they answer."""
        kept = self._ray.put(packed(policy.network.model, self._dtypes))

        def put() -> None:
            self._number, self._version = self._number + 1, version
            self._kept = Kept(self._kept.model, kept)

        return put

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        found = dict(self.sample_each(requests))
        return [found[i] for i in range(len(requests))]

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        with self._lock:
            assert self._kept.weights is not None, "sync_weights comes before sample"
            count = len(self._actors)
            shares = [range(i, len(requests), count) for i in range(count)]
            under_way = {self._asked(i, [requests[j] for j in share]): i for i, share in enumerate(shares) if share}
            while under_way:
                ready, _ = self._ray.wait(list(under_way), timeout=self._settings.deadline)
                if not ready:
                    raise SamplerLost(self._waited(min(under_way.values())))
                actor = under_way[ready[0]]
                try:
                    position, completions = self._heard(ready[0], actor)
                except StopIteration:
                    del under_way[ready[0]]
                    continue
                yield shares[actor][position], completions

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def _asked(self, actor: int, requests: list[SampleRequest]) -> Any:
        """Groups of a share, as Ray brings them."""
        ask = self._actors[actor].sample_each.options(num_returns="streaming")
        return ask.remote(self._version, self._number, self._kept, requests)

    def _heard(self, answers: Any, actor: int) -> tuple[int, list[Completion]]:
        """The next group. Raises StopIteration behind the last."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(next(answers))
        except errors.RayActorError as error:
            raise SamplerLost(
                f"{self._named(actor)} ended {self._settings.restarts + 1} times in a row under the same prompts "
                f"({first_line(error)}); if the system killed it, it may lack memory: lower sampler_rows"
            ) from error
        except errors.RayTaskError as error:
            raise ValueError(
                f"{self._named(actor)}: {type(error.cause).__name__}: {first_line(error.cause)}"
            ) from error

    def _named(self, actor: int) -> str:
        return f"sampler actor {actor} of {len(self._actors)}"

    def _waited(self, actor: int) -> str:
        return (
            f"the policy (process {os.getpid()}) waited {self._settings.deadline:g} s (placement.deadline) for a group "
            f"from {self._named(actor)}: it hangs, or its machine is gone (see `ray status`)"
        )


def packed(source: nn.Module, dtypes: Sequence[torch.dtype]) -> Packed:
    """The parameters as bytes, each in its dtype."""
    found = []
    for parameter, dtype in zip(source.parameters(), dtypes, strict=True):
        values = parameter.detach().to("cpu", dtype).contiguous()
        found.append((values.reshape(-1).view(torch.uint8).numpy(), tuple(parameter.shape)))
    return found


@torch.no_grad()
def unpack(weights: Packed, model: nn.Module) -> None:
    """Puts them in place. What Ray lends is read-only, so that each is copied on its way."""
    for parameter, (values, shape) in zip(model.parameters(), weights, strict=True):
        parameter.copy_(torch.from_numpy(values.copy()).view(parameter.dtype).reshape(shape))


def on_copy(
    source: nn.Module, dtype: torch.dtype | None, make: Callable[[nn.Module], Any], settings: PlacementConfig
) -> RaySamplers:
    """Samplers on copies of a model."""
    return RaySamplers(make, copy_of(source, dtype, torch.device("cpu")), settings)
