"""Rank 0 collects; what it samples on the way, all ranks sample together, each its share of the requests.

The random stream of a completion is named by counters, so that who samples it does not matter. Rewards, environments
and judges are called by rank 0 alone, with whole batches, as in one process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from torch import nn

from gspo.collectors.base import Collected, Collector
from gspo.collectors.source import Source, Wave
from gspo.data import Row
from gspo.dist.policy import RankedPolicy
from gspo.dist.ranks import Ranks, portable
from gspo.dist.shards import share_of
from gspo.samplers.base import Closes, Sampler, SampleRequest, SamplesEach, TakesSnapshots
from gspo.types import Completion

T = TypeVar("T")


class SharedSampler:
    """A sampler on each rank's own copy of the weights. While rank 0 leads, the others serve."""

    needs_weights = True

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler, self.ranks = sampler, ranks
        self._newest: tuple[Any, int] | None = None

    @property
    def scores(self) -> Literal["exact", "guided", "none"]:
        return self.sampler.scores

    def sync_weights(self, policy: Any, version: int) -> None:
        """Takes place when weights are gathered to sample with them."""
        self._newest = (policy, version)

    def arrive(self) -> None:
        """With all weights at hand."""
        if self._newest is not None:
            self.sampler.sync_weights(*self._newest)
            self._newest = None

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """On rank 0, between `lead` and its end."""
        return self._together(self.ranks.from_first(list(requests)))

    def serve(self) -> None:
        """On the others, until rank 0 has no more requests; it meets the same errors and judges them."""
        while (requests := self.ranks.from_first(None)) is not None:
            self._sent(requests)

    def dismiss(self) -> None:
        self.ranks.from_first(None)

    def _together(self, requests: list[SampleRequest]) -> list[list[Completion]]:
        parts = self._sent(requests)
        failed = [part for part in parts if isinstance(part, Exception)]
        if failed:
            raise failed[0]
        return [completions for part in parts for completions in part]

    def _sent(self, requests: list[SampleRequest]) -> list[Any]:
        """What each rank sampled, or why it could not."""
        own = share_of(requests, self.ranks.rank, self.ranks.size)
        sent: Any
        try:
            sent = self.sampler.sample(own) if own else []
        except Exception as error:
            sent = portable(error)
        return self.ranks.everyone(sent)


class LoneSampler:
    """A sampler with weights of its own, which rank 0 alone speaks with."""

    needs_weights = False

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler, self.ranks = sampler, ranks
        self.scores: Literal["exact", "guided", "none"] = ranks.from_first(sampler.scores)

    def sync_weights(self, policy: Any, version: int) -> None:
        """A call of all ranks: the sampler is given an ordinary model with all weights."""
        gathered = Gathered(policy.plain_model())
        self.ranks.first(lambda: self.sampler.sync_weights(gathered, version))

    def snapshot(self, policy: Any, version: int) -> Callable[[], None]:
        """A call of all ranks. What rank 0 gets puts the weights in place, from any of its threads; the others' does
        nothing. A model put together from shards is a copy already: it is sent by who puts it, if it ever is."""
        gathered = Gathered(policy.plain_model())
        is_copy = gathered.model is not policy.network.model
        kept: list[Callable[[], None]] = []

        def keep() -> None:
            assert isinstance(self.sampler, TakesSnapshots)
            later = partial(self.sampler.sync_weights, gathered, version)
            kept.append(later if is_copy else self.sampler.snapshot(gathered, version))

        self.ranks.first(keep)
        return kept[0] if kept else lambda: None

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        return self.sampler.sample(requests)

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        assert isinstance(self.sampler, SamplesEach)
        yield from self.sampler.sample_each(requests)

    def arrive(self) -> None:
        pass

    def serve(self) -> None:
        pass

    def dismiss(self) -> None:
        pass

    def close(self) -> None:
        if isinstance(self.sampler, Closes):
            self.sampler.close()


@dataclass(frozen=True)
class Gathered:
    """A policy's weights as one process has them; what a sampler reads of a policy."""

    model: nn.Module

    @property
    def network(self) -> "Gathered":
        return self


@dataclass(frozen=True, kw_only=True)
class Lead:
    """Work that rank 0 does for all, with the weights gathered and the other ranks sampling for it."""

    ranks: Ranks
    policy: RankedPolicy
    sampler: SharedSampler | LoneSampler

    def collector(self, collector: Collector) -> Collector:
        return LedCollector(collector=collector, lead=self)

    def beside(self, collector: Collector) -> Collector:
        assert isinstance(collector, LedCollector)
        return collector.collector

    def source(self, source: Source) -> Source:
        return LedSource(source=source, lead=self)

    def __call__(self, work: Callable[[], T]) -> T:
        """What `work()` gives on rank 0, on every rank; its error too."""
        gathered: AbstractContextManager[None] = self.policy.whole() if self.sampler.needs_weights else nullcontext()
        with gathered:
            self.sampler.arrive()
            if not self.ranks.is_first:
                self.sampler.serve()
            return self.ranks.first(lambda: self._led(work))

    def _led(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self.sampler.dismiss()


@dataclass(frozen=True, kw_only=True)
class LedCollector:
    """A collector on rank 0."""

    collector: Collector
    lead: Lead

    def collect(self, cursor: int, step: int) -> Collected:
        return self.lead(lambda: self.collector.collect(cursor, step))


@dataclass(frozen=True, kw_only=True)
class LedSource:
    """A source of groups on rank 0."""

    source: Source
    lead: Lead

    @property
    def renderer(self) -> Any:
        return self.source.renderer

    @property
    def group_size(self) -> int:
        return self.source.group_size

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return self.source.next_rows(cursor, count)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave:
        return self.lead(lambda: self.source.wave(rows, step))
