"""Rewards that take time run while other groups are still being sampled, and change nothing but the clock."""

import threading
import time
from dataclasses import replace

import pytest

from gspo.collectors import GroupSource
from gspo.models import character_tokenizer
from gspo.renderers import Renderer
from gspo.rewards import RewardConfig, RewardFailure, Rewards
from gspo.samplers import FakeSampler
from gspo.sampling import Sampling

TOKENIZER = character_tokenizer("0123456789")
GROUPS = 6


class OneByOne(FakeSampler):
    """Groups end one after the other, the last first, each after a while."""

    seconds = 0.0

    def sample_each(self, requests):
        for number in reversed(range(len(requests))):
            time.sleep(self.seconds)
            yield number, self.sample([requests[number]])[0]


def source(reward, overlaps=True, seconds=0.0) -> GroupSource:
    sampler = OneByOne(lambda request, i: (*TOKENIZER(str(i))["input_ids"], TOKENIZER.eos_token_id), 1)
    sampler.seconds = seconds
    return GroupSource(
        rows=[{"prompt": str(i), "answer": str(i % 3)} for i in range(10)],
        renderer=Renderer(TOKENIZER),
        sampler=sampler,
        rewards=Rewards([reward]),
        sampling=Sampling(max_completion_tokens=4),
        group_size=4,
        seed=0,
        overlap_rewards=overlaps,
    )


def wave(one: GroupSource):
    return one.wave(one.next_rows(0, GROUPS), step=0)


def test_groups_are_the_same_with_and_without_overlap():
    reward = lambda completion, answer: float(completion == answer)  # noqa: E731
    apart, beside = wave(source(reward, overlaps=False)), wave(source(reward))
    assert apart.groups == beside.groups
    assert [rollout.group_id for group in beside.groups for rollout in group.rollouts] == sorted([*range(GROUPS)] * 4)
    assert len({rollout.reward for group in beside.groups for rollout in group.rollouts}) == 2


def test_time_is_saved_and_what_ended_meanwhile_is_scored_together():
    calls = []

    def slow(completions, **columns):
        calls.append(len(completions))
        time.sleep(0.05)
        return [0.0] * len(completions)

    waited = []
    for _ in range(3):  # the quickest: whatever else the machine does
        calls.clear()
        waited.append(wave(source(slow, seconds=0.04)).seconds["reward"])
        assert sum(calls) == GROUPS * 4 and len(calls) > 1
    assert min(waited) < 0.05 * 2.5  # one after the other it would be 6 x 0.05
    calls.clear()
    wave(source(slow, overlaps=False))
    assert calls == [GROUPS * 4]


def test_rewards_that_answer_at_once_stay_in_the_samplers_thread():
    one = replace(source(RewardConfig(name="exact")), renderer=Renderer(TOKENIZER))
    before = threading.active_count()
    seen = []
    real = one.rewards.score
    one.rewards.score = lambda *arguments: (seen.append(threading.current_thread()), real(*arguments))[1]
    wave(one)
    assert seen == [threading.main_thread()] and threading.active_count() == before


def test_errors_come_through():
    """A reward's mistake, too many failures, and a sampler that breaks: each ends the wave, and no thread is left."""

    def missing(completions, no_such_column):
        raise AssertionError

    with pytest.raises(ValueError, match="no_such_column"):
        wave(source(missing))

    def broken(completions):
        raise RuntimeError("down")

    with pytest.raises(RewardFailure, match=r"24 of 24.*down"):
        wave(replace(source(broken), failure_limit=0.5))
    one = source(lambda completions: [0.0] * len(completions))
    one.sampler.say = lambda request, i: 1 / 0
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        wave(one)
    assert threading.active_count() == before
