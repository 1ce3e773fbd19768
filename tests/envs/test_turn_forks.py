"""TL-GRPO: groups at turns, their cost in calls of the environment, and what goes on."""

import math

import pytest
import torch
from scripted import source_of, text_of

from gspo.advantages import GroupStd
from gspo.collectors import Direct, TurnForks
from gspo.collectors.base import shown
from gspo.envs import Observation
from gspo.objectives import GSPO
from gspo.training.batch import advantage_input, assemble, flatten
from gspo.types import Scores


class Guess:
    """Reward by the digit said; a log of every answer given, over all copies."""

    def __init__(self, log, turns=3, said=""):
        self.log, self.turns, self.said = log, turns, said

    def start(self):
        return Observation()

    def _answer(self, text):
        self.log.append(self.said + text)
        digit = float(text) if text.isdigit() else math.nan
        if math.isnan(digit):
            raise ValueError("no digit")
        done = len(self.said) + 1 == self.turns
        return Observation(content="ok", reward=digit / 10, is_done=done)

    def step(self, action):
        answer = self._answer(action.text)
        self.said += action.text
        return answer

    def close(self):
        pass


class Copied(Guess):
    def fork(self):
        return type(self)(self.log, self.turns, self.said)


class Evaluated(Guess):
    def step(self, action):
        raise AssertionError("an alternative must leave no trace")

    def evaluate(self, action):
        return self._answer(action.text)


def forks_of(kind, say, *, continuation="first", group_size=4, max_turns=3, prompts=1, **settings):
    log = []
    source = source_of(lambda row, seed: kind(log), say, group_size=group_size, max_turns=max_turns, **settings)
    forks = TurnForks(source=source, continuation=continuation)
    return forks, forks.wave(forks.next_rows(0, prompts), step=0), log


DIGITS = lambda index, turn: f"{(3 * index + turn) % 10}|"  # noqa: E731


@pytest.mark.parametrize("kind", [Copied, Evaluated])
def test_calls_of_the_environment_are_turns_times_group(kind):
    _, wave, log = forks_of(kind, DIGITS, prompts=2)
    assert len(log) == 2 * 3 * 4 and shown(wave.facts)["forks/environment_calls"] == 24.0
    assert len(wave.groups) == 6 and [len(g.rollouts) for g in wave.groups] == [4] * 6
    assert [g.prompt_id for g in wave.groups] == [0, 0, 0, 1, 1, 1]
    assert [r.group_id for g in wave.groups for r in g.rollouts] == [i for i in range(6) for _ in range(4)]


def test_histories_are_nested_and_hold_what_was_chosen():
    _, wave, log = forks_of(Copied, DIGITS)
    assert [text_of(group.prompt_ids) for group in wave.groups] == ["ab", "ab0|ok", "ab0|ok1|ok"]
    assert [[text_of(r.completion.ids) for r in g.rollouts] for g in wave.groups] == [
        ["0|", "3|", "6|", "9|"],
        ["1|", "4|", "7|", "0|"],
        ["2|", "5|", "8|", "1|"],
    ]
    assert [[r.reward for r in g.rollouts] for g in wave.groups] == [
        [0.0, 0.3, 0.6, 0.9], [0.1, 0.4, 0.7, 0.0], [0.2, 0.5, 0.8, 0.1],
    ]  # fmt: skip
    assert sorted(log[4:8]) == ["00", "01", "04", "07"]
    samples = flatten(wave.groups, torch.ones(12), drop_truncated=True)
    assert all(s.mask is None and s.is_trained for s in samples)
    assert [text_of(s.prompt_ids) for s in samples[4:8]] == ["ab0|ok"] * 4


@pytest.mark.parametrize(("continuation", "expected"), [("first", "ab0|ok1|ok"), ("best", "ab9|ok7|ok")])
def test_which_alternative_goes_on(continuation, expected):
    _, wave, _ = forks_of(Copied, DIGITS, continuation=continuation)
    assert text_of(wave.groups[-1].prompt_ids) == expected


def test_a_random_continuation_is_a_function_of_counters():
    first, second = (forks_of(Copied, DIGITS, continuation="random", prompts=32)[1].groups for _ in range(2))
    found = [text_of(group.prompt_ids) for group in first]
    assert found == [text_of(group.prompt_ids) for group in second] and len(set(found[1::3])) == 4


def loss_of(groups):
    advantage, _ = GroupStd()(advantage_input(groups), None)
    step = assemble(flatten(groups, advantage, False), torch.device("cpu"))
    logprobs = step.old_logprobs.clone().requires_grad_()
    objective = GSPO()
    weight = objective.weights(step, objective.counts(step))
    loss = -(objective.gain(Scores(logprobs=logprobs), step) * weight).sum()
    loss.backward()
    return loss.item(), logprobs.grad


def test_advantages_are_those_of_the_turns_own_group():
    _, wave, _ = forks_of(Copied, DIGITS)
    advantage, _ = GroupStd()(advantage_input(wave.groups), None)
    for turn, group in enumerate(wave.groups):
        rewards = torch.tensor([r.reward for r in group.rollouts], dtype=torch.float64)
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        torch.testing.assert_close(advantage[4 * turn : 4 * turn + 4].double(), expected)


def test_equal_rewards_in_a_turn_have_no_gradient():
    _, wave, _ = forks_of(Copied, lambda index, turn: "5|" if turn == 1 else f"{index}|")
    _, gradient = loss_of(wave.groups)
    assert (gradient[4:8] == 0).all() and (gradient[:4] != 0).any() and (gradient[8:] != 0).any()


def test_the_order_of_alternatives_does_not_change_the_loss():
    same = {"continuation": "best"}
    one = loss_of(forks_of(Copied, DIGITS, **same)[1].groups)
    other = loss_of(forks_of(Copied, lambda index, turn: DIGITS(3 - index, turn), **same)[1].groups)
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    torch.testing.assert_close(one[1].reshape(3, 4, -1).flip(1), other[1].reshape(3, 4, -1))


def test_alternatives_that_fail_or_are_cut_are_not_gone_on_with():
    said = lambda index, turn: "x|" if index == 0 else "99999999" if index == 1 else "7|"  # noqa: E731
    _, wave, _ = forks_of(Copied, said, limit=4)
    assert text_of(wave.groups[1].prompt_ids) == "ab7|ok"
    endings = [r.ending for r in wave.groups[0].rollouts]
    assert endings == ["env_error", "cut", "done", "done"] and math.isnan(wave.groups[0].rollouts[0].reward)
    _, wave, _ = forks_of(Copied, lambda index, turn: "x|")
    assert len(wave.groups) == 1  # nothing to go on with


def test_an_environment_without_alternatives_is_refused_by_name():
    with pytest.raises(ValueError, match="Guess has neither fork"):
        forks_of(Guess, DIGITS)


def test_a_start_that_fails_is_a_group_that_trains_nothing():
    class Broken(Copied):
        def start(self):
            raise ValueError("no licence")

    forks, wave, _ = forks_of(Broken, DIGITS)
    assert [r.ending for g in wave.groups for r in g.rollouts] == ["env_error"]
    samples = flatten(wave.groups, torch.zeros(1), False)
    assert not samples[0].is_trained and "no licence" in wave.errors[0]
    assert len(Direct(source=forks, prompts_per_step=2).collect(0, 0).groups) == 2


def test_a_prompt_that_leaves_no_room_is_a_group_that_trains_nothing():
    _, wave, log = forks_of(Copied, DIGITS, context=2)
    assert [[r.ending for r in g.rollouts] for g in wave.groups] == [["max_tokens"]] and log == []
    assert wave.groups[0].rollouts[0].turns == () and math.isnan(wave.groups[0].rollouts[0].reward)
    samples = flatten(wave.groups, torch.zeros(1), False)
    step = assemble(samples, torch.device("cpu"))
    assert not step.mask.any() and text_of(samples[0].prompt_ids) == "ab"


def test_a_start_that_is_an_end_is_a_failure():
    class Over(Copied):
        def start(self):
            return Observation(is_done=True)

    _, wave, _ = forks_of(Over, DIGITS)
    assert [r.ending for g in wave.groups for r in g.rollouts] == ["env_error"]
    assert "over before its first turn" in wave.errors[0]
