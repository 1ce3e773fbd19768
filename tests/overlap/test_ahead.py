"""Sampling ahead of training: order, staleness, equality at lag 0, and what happens when a side fails."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from runs import metrics, settings, weights

from gspo.collectors.base import Collected
from gspo.samplers.base import SampleRequest, SamplerLost
from gspo.samplers.copied import Copied, InProcessOfItsOwn, copy_of
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training import loop
from gspo.training.overlap import Ahead, InTurn
from gspo.training.parts import build
from gspo.training.run import resume, start
from gspo.training.state import TrainState
from gspo.types import Completion, Group, Rollout, Turn

UPDATES = 2
"""Versions of a step."""


class Telling:
    """A sampler without a model: its completions say which weights they came from. Notes what it does, in order."""

    def __init__(self) -> None:
        self.version = -1
        self.is_sampling = False
        self.puts: list[tuple[int, bool]] = []
        """(version, whether a batch was under way)."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        raise AssertionError("the collector of these tests does not ask")

    def sync_weights(self, policy: object, version: int) -> None:
        self.snapshot(policy, version)()

    def snapshot(self, policy: object, version: int) -> Callable[[], None]:
        def put() -> None:
            self.version = version
            self.puts.append((version, self.is_sampling))

        return put


class Counted:
    """A collector of 3 prompts a batch; `seconds(step)` passes while it samples."""

    def __init__(self, sampler: Telling, seconds: Callable[[int], float] = lambda step: 0.0) -> None:
        self.sampler, self.seconds = sampler, seconds
        self.began: list[int] = []

    def collect(self, cursor: int, step: int) -> Collected:
        self.began.append(step)
        self.sampler.is_sampling = True
        version = self.sampler.version
        time.sleep(self.seconds(step))
        assert self.sampler.version == version, "the weights moved under a batch"
        self.sampler.is_sampling = False
        groups = tuple(self._group(prompt, version) for prompt in range(cursor, cursor + 3))
        return Collected(groups=groups, cursor=cursor + 3, seconds={"sample": 0.0})

    def _group(self, prompt: int, version: int) -> Group:
        said = Completion(ids=(1,), logprobs=(0.0,), policy_version=version, finish_reason="stop")
        turn = Turn(prompt_ids=(1,), completion=said)
        rollout = Rollout(group_id=0, index=0, turns=(turn,), text="", rewards=(), statuses=())
        return Group(prompt_id=prompt, prompt_ids=(1,), prompt_text="", rollouts=(rollout,))


def trained(feed: Ahead | InTurn, steps: int, work: Callable[[int], float] = lambda step: 0.0) -> list[Collected]:
    """The batches of a loop whose updates take `work(step)` seconds."""
    found = []
    with feed:
        for step in range(steps):
            found.append(feed.collect(TrainState(step=step, version=UPDATES * step, cursor=3 * step)))
            time.sleep(work(step))
    return found


def waited(until: Callable[[], bool]) -> float:
    """0, when it is so."""
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return 0.0


def lags(batches: Sequence[Collected]) -> list[int]:
    return [
        step - batch.groups[0].rollouts[0].completion.policy_version // UPDATES for step, batch in enumerate(batches)
    ]


@pytest.mark.parametrize("lag", [0, 1, 2, 5])
def test_batches_come_in_order_once_and_never_staler_than_allowed(lag: int) -> None:
    draw = random.Random(lag)
    sampler = Telling()
    collector = Counted(sampler, lambda step: draw.random() * 0.01)
    batches = trained(Ahead(collector, sampler, None, max_lag=lag, until=40), 40, lambda step: draw.random() * 0.01)
    assert [group.prompt_id for batch in batches for group in batch.groups] == list(range(120))
    assert collector.began == list(range(40))
    assert all(0 <= found <= lag for found in lags(batches))
    assert max(lags(batches)) >= min(lag, 1)
    assert [batch.facts["policy_lag/max"][0] for batch in batches] == lags(batches)


def test_it_samples_while_training_goes_on() -> None:
    """Batch s + 1 and the update of step s wait for each other in their middle."""
    sampler, both = Telling(), threading.Barrier(2, timeout=30)
    collector = Counted(sampler, lambda step: 0.0 * both.wait() if step > 0 else 0.0)
    trained(Ahead(collector, sampler, None, max_lag=1, until=10), 10, lambda step: 0.0 * both.wait() if step < 9 else 0)


def test_a_slow_trainer_is_waited_for_and_a_slow_sampler_gets_the_newest_weights() -> None:
    sampler = Telling()
    slow = Counted(sampler, lambda step: waited(lambda: feed._newest.step >= step))
    feed = Ahead(slow, sampler, None, max_lag=3, until=8)
    assert max(lags(trained(feed, 8))) <= 1
    sampler = Telling()
    quick = Counted(sampler)
    feed = Ahead(quick, sampler, None, max_lag=3, until=8)
    batches = trained(feed, 8, lambda step: waited(lambda: len(quick.began) > min(step + 3, 7)))
    assert lags(batches) == [0, *(min(step, 3) for step in range(1, 8))]


def test_nothing_is_sampled_beyond_the_last_step() -> None:
    sampler = Telling()
    collector = Counted(sampler)
    trained(Ahead(collector, sampler, None, max_lag=3, until=4), 4)
    assert collector.began == [0, 1, 2, 3]


def test_a_resumed_run_draws_again_what_was_only_sampled() -> None:
    sampler = Telling()
    collector = Counted(sampler)
    with Ahead(collector, sampler, None, max_lag=2, until=10) as feed:
        for step in range(3):
            batch = feed.collect(TrainState(step=step, version=step, cursor=3 * step))
        until = time.monotonic() + 30
        while len(collector.began) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    assert batch.cursor == 9 and max(collector.began) > 2  # more was sampled than trained
    again = Counted(sampler)
    with Ahead(again, sampler, None, max_lag=2, until=10) as feed:
        batch = feed.collect(TrainState(step=3, version=3, cursor=9))
    assert [group.prompt_id for group in batch.groups] == [9, 10, 11]


def test_held_out_questions_are_asked_between_batches_with_the_newest_weights() -> None:
    sampler = Telling()
    collector = Counted(sampler, lambda step: 0.02)
    with Ahead(collector, sampler, None, max_lag=2, until=10) as feed:
        for step in range(6):
            feed.collect(TrainState(step=step, version=UPDATES * step, cursor=3 * step))
            state = TrainState(step=step + 1, version=UPDATES * (step + 1), cursor=3 * (step + 1))
            with feed.settled(state):
                assert not sampler.is_sampling and sampler.version == UPDATES * (step + 1)
                time.sleep(0.03)
                assert not sampler.is_sampling
    assert not any(under_way for _, under_way in sampler.puts)


def test_a_sampler_that_restarts_gets_weights_in_the_middle_of_a_batch() -> None:
    sampler = Telling()

    class Restarting(Counted):
        def collect(self, cursor: int, step: int) -> Collected:
            self.sampler.is_sampling = True
            time.sleep(0.03)
            self.sampler.is_sampling = False
            groups = tuple(self._group(prompt, self.sampler.version) for prompt in range(cursor, cursor + 3))
            return Collected(groups=groups, cursor=cursor + 3, seconds={})

    batches = trained(
        Ahead(Restarting(sampler), sampler, None, max_lag=2, until=8, restarts=True), 8, lambda step: 0.01
    )
    assert any(under_way for _, under_way in sampler.puts) and all(found <= 2 for found in lags(batches))


def test_what_goes_wrong_beside_training_is_raised_where_its_batch_is_waited_for() -> None:
    sampler = Telling()

    class Failing(Counted):
        def collect(self, cursor: int, step: int) -> Collected:
            if step == 2:
                raise SamplerLost("gone")
            return super().collect(cursor, step)

    feed = Ahead(Failing(sampler), sampler, None, max_lag=2, until=8)
    with pytest.raises(SamplerLost, match="gone"), feed:
        for step in range(8):
            feed.collect(TrainState(step=step, version=step, cursor=3 * step))
    assert step == 2 and not any(thread.name == "gspo-ahead" for thread in threading.enumerate())


def test_weights_that_train_cannot_be_sampled_from_beside_training() -> None:
    with pytest.raises(ValueError, match='set sampler = "process"'):
        settings(Path("nowhere"), ("max_policy_lag", 1))
    with pytest.raises(ValueError, match="samples from these very weights"):
        Ahead(Counted(Telling()), InProcess.__new__(InProcess), None, max_lag=1, until=1)  # type: ignore[arg-type]


def in_a_copy(config, **changes):
    """The run's parts, with its sampler on a copy of the weights, in this process."""
    from dataclasses import replace

    parts = build(config, **changes)
    copied = copy_of(parts.loaded.model)
    network = type(parts.policy.network)(copied)
    sampler = Copied(InProcess(network, parts.renderer.stop_ids, parts.renderer.pad_id), copied)
    source = replace(parts.source, sampler=sampler)
    collector = replace(parts.collector, source=source)
    return replace(parts, sampler=sampler, source=source, collector=collector)


def prompts(folder: Path) -> list[int]:
    """Every prompt of the saved rollouts, in the order of training; once per group."""
    rows = [row for path in sorted(folder.glob("rollouts/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return list(dict.fromkeys(row["prompt_id"] for row in rows))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes runs sample ahead by so many steps, from a copy of the weights in this process."""

    def use(lag: int) -> None:
        monkeypatch.setattr("gspo.training.run.build", lambda config, given, report: in_a_copy(config))
        monkeypatch.setattr(
            loop,
            "chosen_feed",
            lambda parts, until: Ahead(parts.collector, parts.sampler, parts.policy, max_lag=lag, until=until),
        )

    return use


BESIDE = ("overlap/", "policy_lag/")


def test_lag_0_equals_the_plain_loop_to_the_bit(tmp_path: Path, ahead: Callable[[int], None]) -> None:
    plain = start(settings(tmp_path / "plain", ("steps", 6)))
    ahead(0)
    beside = start(settings(tmp_path / "beside", ("steps", 6)))
    left, right = weights(plain.folder), weights(beside.folder)
    assert all(torch.equal(left[name], right[name]) for name in left)
    ours = [{k: v for k, v in line.items() if not k.startswith(BESIDE)} for line in metrics(beside.folder)]
    assert ours == metrics(plain.folder)


def test_resume_in_the_middle_repeats_and_skips_nothing(tmp_path: Path, ahead: Callable[[int], None]) -> None:
    ahead(2)
    asked = threading.Event()

    def stop_at_3(state_step: int) -> bool:
        return asked.is_set()

    config = settings(tmp_path / "run", ("steps", 8), ("checkpoints.keep_rollouts", 0))
    seen: list[int] = []
    original = loop.write_ledger

    def counting(folder, step, updates):
        seen.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(folder, step, updates)

    loop.write_ledger = counting
    try:
        stopped = start(config)
    finally:
        loop.write_ledger = original
    assert not stopped.is_finished and stopped.state.step == 3 and stopped.state.cursor == 12
    finished = resume(stopped.folder)
    assert finished.is_finished and prompts(finished.folder) == list(range(32))
    found = [line["policy_lag/max"] for line in metrics(finished.folder) if "policy_lag/max" in line]
    assert len(found) == 8 and max(found) <= 2 and found[3] == 0  # the first batch after resuming is fresh


def test_a_process_of_its_own_draws_the_same_and_survives_its_death() -> None:
    parts = build(settings(Path("nowhere")), report=lambda line: None)
    model = parts.loaded.model
    copied = copy_of(model)
    here = InProcess(parts.policy.network, parts.renderer.stop_ids, parts.renderer.pad_id)
    there = InProcess(type(parts.policy.network)(copied), parts.renderer.stop_ids, parts.renderer.pad_id)
    process = InProcessOfItsOwn(there, copied, restarts=1)
    sampler = Copied(process, copied)
    ids = parts.renderer.prompt_ids("12+34=")
    requests = [
        SampleRequest(prompt_ids=ids, n=4, seed=0, step=0, prompt_id=i, sampling=Sampling(max_completion_tokens=6))
        for i in range(3)
    ]
    try:
        sampler.sync_weights(parts.policy, 0)
        here.sync_weights(parts.policy, 0)
        assert sampler.sample(requests) == here.sample(requests)
        os.kill(process.pid, signal.SIGKILL)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        old = sampler.sample(requests)  # from a new process, still with the weights it was given
        sampler.sync_weights(parts.policy, 4)
        here.sync_weights(parts.policy, 4)
        new = sampler.sample(requests)
        assert new == here.sample(requests) and new != old
        assert {c.policy_version for group in new for c in group} == {4}
        with pytest.raises(ValueError, match="the sampler's process: "):
            sampler.sample([requests[0], "not a request"])  # type: ignore[list-item]
        assert sampler.sample(requests) == new  # it goes on after an error of its own
    finally:
        sampler.close()


class Dying:
    """A sampler whose process ends at its first request."""

    scores = "exact"

    def sync_weights(self, policy: object, version: int) -> None: ...
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]: ...
    def sample_each(self, requests: Sequence[SampleRequest]):
        os._exit(9)
        yield


def test_a_process_that_keeps_dying_ends_the_run_with_a_line() -> None:
    process = InProcessOfItsOwn(Dying(), torch.nn.Linear(1, 1), restarts=1)
    with pytest.raises(SamplerLost, match=r"exit code 9\) 2 times in a row; .* lower sampler_rows"):
        process.sample([])
