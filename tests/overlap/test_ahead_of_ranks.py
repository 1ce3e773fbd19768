"""Sampling ahead for many ranks: rank 0 alone samples and puts weights, and all get the same batches and errors.

The ranks are threads here; `tests/dist` has them as processes.
"""

import queue
import threading
import time
from collections.abc import Callable

import pytest
from test_ahead import UPDATES, Counted, Telling, lags

from gspo.collectors.base import Collected
from gspo.samplers.base import SamplerLost
from gspo.training.overlap import Ahead
from gspo.training.state import TrainState

SIZE = 3


class Side:
    """A rank that is a thread."""

    is_many, size, local_size = True, SIZE, SIZE

    def __init__(self, rank: int, boxes: list[queue.Queue]) -> None:
        self.rank, self.boxes = rank, boxes

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def first(self, work: Callable[[], object]) -> object:
        if not self.is_first:
            value, error = self.boxes[self.rank].get(timeout=30)
        else:
            value, error = None, None
            try:
                value = work()
            except Exception as failure:
                error = failure
            for box in self.boxes[1:]:
                box.put((value, error))
        if error is not None:
            raise error
        return value


class Idle(Telling):
    """Of a rank that has nothing to put and nothing to collect."""

    def snapshot(self, policy: object, version: int) -> Callable[[], None]:
        def put() -> None:
            raise AssertionError("only rank 0 puts weights")

        return put

    def collect(self, cursor: int, step: int) -> Collected:
        raise AssertionError("only rank 0 collects")


def together(
    collector: Counted, loop: Callable[[Ahead, Side], list[Collected]], max_lag: int, restarts: bool = False
) -> list:
    """What the loop gives on each rank, or its error; steps 0 to 7."""
    boxes: list[queue.Queue] = [queue.Queue() for _ in range(SIZE)]
    found: list = [None] * SIZE

    def work(rank: int) -> None:
        side, idle = Side(rank, boxes), Idle()
        own = (collector, collector.sampler) if side.is_first else (idle, idle)
        try:
            with Ahead(*own, None, max_lag=max_lag, until=8, restarts=restarts, ranks=side) as feed:  # type: ignore[arg-type]
                found[rank] = loop(feed, side)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


def state_at(step: int) -> TrainState:
    return TrainState(step=step, version=UPDATES * step, cursor=3 * step)


def steps(feed: Ahead, side: Side) -> list[Collected]:
    return [feed.collect(state_at(step)) for step in range(8)]


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_every_rank_gets_the_batches_of_one_process(lag: int) -> None:
    sampler = Telling()
    first, *others = together(Counted(sampler, lambda step: 0.002), steps, lag)
    assert [group.prompt_id for batch in first for group in batch.groups] == list(range(24))
    assert all(0 <= found <= lag for found in lags(first))
    assert all(other == first for other in others)  # metrics too
    assert not any(under_way for _, under_way in sampler.puts)


def test_held_out_questions_find_rank_0_at_rest() -> None:
    sampler = Telling()

    def loop(feed: Ahead, side: Side) -> list[Collected]:
        found = []
        for step in range(8):
            found.append(feed.collect(state_at(step)))
            with feed.settled(state_at(step + 1)):
                if side.is_first:
                    assert not sampler.is_sampling and sampler.version == UPDATES * (step + 1)
                    time.sleep(0.005)
                    assert not sampler.is_sampling
                side.first(lambda: None)
        return found

    first, *others = together(Counted(sampler, lambda step: 0.002), loop, 2)
    assert len(first) == 8 and all(other == first for other in others)


def test_a_sampler_that_restarts_is_brought_weights_by_rank_0() -> None:
    sampler = Telling()

    class Restarting(Counted):
        def collect(self, cursor: int, step: int) -> Collected:
            time.sleep(0.003)
            groups = tuple(self._group(prompt, self.sampler.version) for prompt in range(cursor, cursor + 3))
            return Collected(groups=groups, cursor=cursor + 3, seconds={})

    first, *others = together(Restarting(sampler), steps, 2, restarts=True)
    assert [version for version, _ in sampler.puts] == [UPDATES * step for step in range(8)]
    assert all(found <= 2 for found in lags(first)) and all(other == first for other in others)


def test_what_goes_wrong_beside_training_is_raised_on_every_rank() -> None:
    class Failing(Counted):
        def collect(self, cursor: int, step: int) -> Collected:
            if step == 2:
                raise SamplerLost("gone")
            return super().collect(cursor, step)

    def loop(feed: Ahead, side: Side) -> list[Collected]:
        for step in range(8):
            try:
                feed.collect(state_at(step))
            except SamplerLost as error:
                return [step, str(error)]
        return []

    assert together(Failing(Telling()), loop, 2) == [[2, "gone"]] * SIZE


def test_ranks_that_fail_do_not_wait_for_what_is_being_sampled() -> None:
    """The others are gone, or wait."""
    goes_on = threading.Event()
    collector = Counted(Telling(), lambda step: 0.0 * goes_on.wait(30) if step == 1 else 0.0)

    def loop(feed: Ahead, side: Side) -> list[Collected]:
        feed.collect(state_at(0))
        raise RuntimeError(f"rank {side.rank}")

    assert [str(error) for error in together(collector, loop, 1)] == ["rank 0", "rank 1", "rank 2"]
    assert not goes_on.is_set()
    goes_on.set()
