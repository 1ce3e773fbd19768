"""Scoring in Ray actors gives what scoring in this process gives."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from gspo.placement.config import PlacementConfig
from gspo.placement.rewards import RayRewards
from gspo.rewards import RewardConfig, Rewards
from gspo.samplers.base import SamplerLost

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

OWN = """
import os, random, time

def shuffling(prompts, completions, **columns):
    order = list(range(len(completions)))
    random.Random(len(order)).shuffle(order)
    return [float(i) for i in order]

def lengthy(completion, answer):
    if completion == "bad":
        raise KeyError("bad")
    return len(completion) / len(answer)

def slow(completion):
    time.sleep(0.4)
    return 1.0

def deadly(completions, **columns):
    os.kill(os.getppid(), 9)
    time.sleep(30)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def placement(**changes) -> PlacementConfig:
    return PlacementConfig(**{"on": "local", "samplers": 0, "reward_workers": 2, "reward_cpus": 0.5, **changes})


def scored_alike(left, right) -> None:
    assert left.names == right.names and left.statuses == right.statuses
    np.testing.assert_array_equal(left.values, right.values)
    np.testing.assert_array_equal(left.total, right.total)
    assert left.errors == right.errors


def batch(texts: list[str]) -> tuple:
    return (
        [f"prompt {i}" for i in range(len(texts))],
        texts,
        [[i] for i in range(len(texts))],
        {"answer": ["1234"] * len(texts)},
    )


def test_scores_are_those_of_one_process(own):
    rewards = [
        RewardConfig(name="length", options={"target_tokens": 1}),
        RewardConfig(function=f"{own}:shuffling", weight=0.5),
        RewardConfig(function=f"{own}:lengthy", workers=2),
    ]
    given = {"environment": 2.0}
    texts = ["a", "bb", "bad", "dddd", "bad", "f", "g"]
    outcomes = [("ok", float(i), "") for i in range(len(texts))]
    with Rewards(rewards, given) as here:
        there = RayRewards(rewards, given, placement())
        try:
            assert there.names == here.names and there.take_time and here.take_time
            np.testing.assert_array_equal(there.weights, here.weights)
            for words in (texts, texts[:1]):
                scored_alike(
                    there.score(*batch(words), outcomes[: len(words)]),
                    here.score(*batch(words), outcomes[: len(words)]),
                )
            with pytest.raises(ValueError, match="reads the column 'answer', which the data does not have"):
                there.score(*batch(texts)[:3], {}, outcomes)
        finally:
            there.close()


def test_a_worker_killed_while_it_scores(own):
    rewards = [RewardConfig(function=f"{own}:slow"), RewardConfig(function=f"{own}:shuffling")]
    texts = [str(i) for i in range(8)]
    there = RayRewards(rewards, {}, placement())
    try:
        want = there.score(*batch(texts))
        import threading

        pids = there.pids()
        threading.Timer(0.3, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids]).start()
        scored_alike(there.score(*batch(texts)), want)
        assert set(there.pids()).isdisjoint(pids)
    finally:
        there.close()


def test_what_cannot_be_survived_is_one_line(own):
    there = RayRewards([RewardConfig(function=f"{own}:deadly")], {}, placement(restarts=1))
    try:
        with pytest.raises(SamplerLost, match="reward worker 0 of 2 ended 2 times in a row") as raised:
            there.score(*batch(["a"]))
        assert "\n" not in str(raised.value)
    finally:
        there.close()
    with pytest.raises(ValueError, match=r"no file .*nowhere.py"):
        RayRewards([RewardConfig(function="nowhere.py:f")], {}, placement())
    twice = [RewardConfig(name="length", options={"target_tokens": 1})] * 2
    with pytest.raises(ValueError, match="two rewards are called 'length'"):
        RayRewards(twice, {}, placement())


def test_a_hung_worker_is_not_waited_for_for_ever(own):
    there = RayRewards([RewardConfig(function=f"{own}:slow", timeout=60.0)], {}, placement())
    try:
        there._settings = placement(deadline=3.0)
        with pytest.raises(SamplerLost, match=r"waited 3 s \(placement.deadline\) for scores from reward worker"):
            there.score(*batch(["a"] * 200))
    finally:
        there.close()
