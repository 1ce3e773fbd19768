"""Where a step's rollout batch comes from: sampled in turn with training, or by a thread beside it.

With `max_policy_lag` = k the thread samples batch s as soon as batches before it are sampled and

    s - k  steps have been trained,                                                                 (1)

with the newest weights of that moment, which stay for the whole batch (a server may be told to restart completions
under way instead). Batches are trained in the order of their steps, each prompt once; the run's cursor stands behind
the last prompt *trained*, so that a resumed run draws again what had only been sampled. At k = 0 condition (1) makes
the two sides take turns, and the batches are those of `InTurn` to the bit.

With many ranks the thread is rank 0's, and says nothing to the others. All ranks publish weights, at the beginning of a
step, because that gathers them; then rank 0 waits for the batch and hands it, or what went wrong, to every rank.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Protocol, Self

from gspo.collectors.base import Collected, Collector, Facts
from gspo.dist.ranks import ALONE, Ranks
from gspo.policies.base import Policy
from gspo.samplers.base import Sampler, TakesSnapshots
from gspo.training.state import TrainState


class Feed(Protocol):
    """Rollout batches for `train_steps`, which enters it and leaves it."""

    def collect(self, state: TrainState) -> Collected:
        """The batch of step `state.step`."""
        ...

    def settled(self, state: TrainState) -> Any:
        """Context for held-out questions: nothing else is sampled, and the sampler has the weights of `state`."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """Samples when asked, with the weights of the moment."""

    collector: Collector
    sampler: Sampler
    policy: Policy

    def collect(self, state: TrainState) -> Collected:
        self.sampler.sync_weights(self.policy, state.version)
        return self.collector.collect(state.cursor, state.step)

    @contextmanager
    def settled(self, state: TrainState) -> Iterator[None]:
        self.sampler.sync_weights(self.policy, state.version)
        yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Weights that were published, on their way into the sampler."""

    step: int
    """Steps trained."""
    version: int
    put: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    collected: Collected
    step: int
    seconds: float
    """Spent on it."""
    idle: float
    """The thread's wait before it."""


class Ahead:
    """Samples at most `max_lag` steps ahead, up to step `until`.

    `restarts`: the sampler takes new weights in the middle of a batch, and begins completions under way again.
    With many `ranks` all of them call; `collector` collects on rank 0 alone, and `sampler.snapshot` is a call of all.
    """

    def __init__(
        self,
        collector: Collector,
        sampler: Sampler,
        policy: Policy,
        *,
        max_lag: int,
        until: int,
        restarts: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        if not isinstance(sampler, TakesSnapshots):
            raise ValueError(
                f"max_policy_lag = {max_lag} samples while the weights move, and {type(sampler).__name__} samples from "
                'these very weights; set sampler = "process" or a server, or max_policy_lag = 0'
            )
        self.collector, self.policy, self.max_lag, self.until = collector, policy, max_lag, until
        self.sampler: TakesSnapshots = sampler
        self.restarts, self.ranks = restarts, ranks
        self._changed = Condition()
        self._thread: Thread | None = None
        self._newest: _Weights | None = None
        self._put_version: int | None = None
        """Of the weights in the sampler."""
        self._versions: list[tuple[int, int]] = []
        """(version, steps trained) of everything published, in order."""
        self._batches: dict[int, _Batch] = {}
        self._next_step = self._cursor = 0
        self._is_sampling = self._is_held = self._is_closed = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread with the batch it is at; what was sampled and not trained is forgotten.

        After an error ranks end at once: the others are waiting, or gone.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and not (error is not None and self.ranks.is_many):
            self._thread.join()

    def collect(self, state: TrainState) -> Collected:
        began = time.perf_counter()
        self._publish(state)
        return self.ranks.first(lambda: self._waited_for(state, began))

    def _waited_for(self, state: TrainState, began: float) -> Collected:
        """The batch of step `state.step`; the first one's starts the thread."""
        if self._thread is None:
            self._next_step, self._cursor = state.step, state.cursor
            self._thread = Thread(target=self._work, name="gspo-ahead", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: state.step in self._batches or self._error is not None)
            if state.step not in self._batches:
                assert self._error is not None
                raise self._error
            batch = self._batches.pop(state.step)
        return replace(
            batch.collected,
            seconds={"wait": time.perf_counter() - began},
            facts={**batch.collected.facts, **self._facts(batch, state)},
        )

    @contextmanager
    def settled(self, state: TrainState) -> Iterator[None]:
        self.ranks.first(self._hold)
        try:
            self._publish(state)
            newest = self._newest
            assert newest is not None
            self.ranks.first(lambda: self._put(newest))
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()

    def _hold(self) -> None:
        """Wait for the batch under way, and begin no other."""
        with self._changed:
            self._is_held = True
            self._changed.wait_for(lambda: not self._is_sampling)

    def _publish(self, state: TrainState) -> None:
        if self._newest is not None and self._newest.version == state.version and self._newest.step == state.step:
            return
        weights = _Weights(
            step=state.step, version=state.version, put=self.sampler.snapshot(self.policy, state.version)
        )
        with self._changed:
            self._newest = weights
            self._versions.append((state.version, state.step))
            self._changed.notify_all()
        if self.restarts:
            self.ranks.first(lambda: self._put(weights))

    def _put(self, weights: _Weights) -> None:
        """Into the sampler, unless it has them."""
        if self._put_version != weights.version:
            weights.put()
            self._put_version = weights.version

    def _work(self) -> None:
        try:
            while self._sampled_one():
                pass
        except BaseException as error:  # raised where the batch is waited for
            with self._changed:
                self._error = error
                self._is_sampling = False
                self._changed.notify_all()

    def _sampled_one(self) -> bool:
        """One batch; False when there is none to sample any more."""
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(self._may_go_on)
            if self._is_closed or self._next_step >= self.until:
                return False
            assert self._newest is not None
            weights, step = self._newest, self._next_step
            self._is_sampling = True
        started = time.perf_counter()
        if not self.restarts:
            self._put(weights)
        collected = self.collector.collect(self._cursor, step)
        batch = _Batch(collected=collected, step=step, seconds=time.perf_counter() - started, idle=started - began)
        with self._changed:
            self._batches[step] = batch
            self._next_step, self._cursor, self._is_sampling = step + 1, collected.cursor, False
            self._changed.notify_all()
        return True

    def _may_go_on(self) -> bool:
        if self._is_closed or self._next_step >= self.until:
            return True
        assert self._newest is not None
        return not self._is_held and self._next_step - self._newest.step <= self.max_lag  # (1)

    def _facts(self, batch: _Batch, state: TrainState) -> Facts:
        """Lags of the batch's completions in steps, and the times of the side that sampled."""
        lags = [
            state.step - self._trained(turn.completion.policy_version)
            for group in batch.collected.groups
            for rollout in group.rollouts
            for turn in rollout.turns
        ]
        assert max(lags, default=0) <= self.max_lag, f"lag {max(lags)} is above max_policy_lag {self.max_lag}"
        seconds = {f"overlap/{name}": (value, 0.0) for name, value in batch.collected.seconds.items()}
        return {
            **seconds,
            "overlap/sampling": (batch.seconds, 0.0),
            "overlap/sampler_idle": (batch.idle, 0.0),
            "policy_lag/mean": (float(sum(lags)), float(len(lags))),
            "policy_lag/max": (float(max(lags, default=0)), 0.0),
        }

    def _trained(self, version: int) -> int:
        """Steps behind the weights of a version."""
        return max(step for known, step in self._versions if known <= version)
