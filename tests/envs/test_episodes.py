"""Conversations with an environment: what is trained, how they end, what happens when the environment fails."""

import asyncio
import math
import time

import pytest
import torch
from scripted import Scripted, ids_of, source_of, text_of

from gspo.advantages import GroupStd
from gspo.collectors import Direct
from gspo.collectors.base import shown
from gspo.collectors.episodes import EnvironmentFailure, environment_seed
from gspo.envs import Observation
from gspo.objectives import GSPO
from gspo.training.batch import advantage_input, assemble, flatten
from gspo.training.metrics import rollout_metrics
from gspo.training.sequences import pieces_of
from gspo.types import Completion, Turn

ASK = Observation(content="b", reward=0.25)
END = Observation(reward=1.0, is_done=True)
WORDS = ["x y|", "z|", "w w|"]


def one(answers, *, start=Observation(), words=WORDS, score=None, **settings):
    """The only rollout of a wave, the wave, and its environment."""
    made = []

    def factory(row, seed):
        made.append(Scripted(answers, start, score))
        return made[-1]

    source = source_of(factory, lambda index, turn: words[turn], **settings)
    wave = source.wave(source.next_rows(0, 1), step=0)
    return wave.groups[0].rollouts[0], wave, made[0]


def test_a_conversation_token_by_token():
    rollout, wave, env = one([ASK, Observation(content="> ", reward=None), END])
    (sample,) = flatten(wave.groups, torch.ones(1), drop_truncated=False)
    said = text_of(sample.completion_ids)
    assert text_of(sample.prompt_ids) == "ab"
    assert said == "x y|bz|> w w|"
    assert sample.mask is not None
    assert "".join("x" if chosen else "." for chosen in sample.mask) == "xxxx.xx..xxxx"
    assert sample.sampler_logprobs == tuple(-1.0 if chosen else 0.0 for chosen in sample.mask)
    assert [turn.reward for turn in rollout.turns][::2] == [0.25, 1.0] and math.isnan(rollout.turns[1].reward)
    assert rollout.reward == 1.25 and rollout.ending == "done" and rollout.text == "w w"
    assert [action.text for action in env.heard] == ["x y", "z", "w w"] and [a.turn for a in env.heard] == [0, 1, 2]
    assert env.is_closed


def test_the_step_masks_what_the_environment_said():
    _, wave, _ = one([ASK, END])
    step = assemble(flatten(wave.groups, torch.tensor([2.0]), False), torch.device("cpu"))
    assert step.mask.tolist() == [[True] * 4 + [False] + [True] * 2]
    assert step.length.tolist() == [6] and step.old_logprobs.sum().item() == -6.0


def test_a_rewritten_history_is_a_sequence_of_its_own():
    rewritten = Observation(content="now", rewrites=True)
    rollout, wave, _ = one([ASK, rewritten, END])
    samples = flatten(wave.groups, torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]]), False)
    assert [(text_of(s.prompt_ids), text_of(s.completion_ids), s.part) for s in samples] == [
        ("ab", "x y|bz|", 0),
        ("now", "w w|", 1),
    ]
    assert [s.rollout_id for s in samples] == [0, 0] and len(rollout.turns) == 3
    assert samples[0].advantage == (1.0, 2, 3, 4, 0, 5, 6) and samples[1].advantage == (7.0, 8, 9, 10)
    step = assemble(samples, torch.device("cpu"))
    weights = GSPO().weights(step, GSPO().counts(step))
    assert weights.sum().item() == pytest.approx(1.0)  # the rollout's share, divided over its rows


def test_each_completion_is_in_one_sequence_under_the_prompt_it_followed():
    said = lambda ids: Completion(ids=ids, logprobs=(-1.0,) * len(ids), policy_version=0, finish_reason="stop")  # noqa: E731
    turns = [
        Turn(prompt_ids=(5,), completion=said((6, 1))),
        Turn(prompt_ids=(5, 6, 1, 7), completion=said((8, 1))),
        Turn(prompt_ids=(5, 6, 2, 7), completion=said((9, 1))),  # one token differs: not an extension
        Turn(prompt_ids=(5, 6, 2, 7, 9, 1), completion=said((3, 1))),  # nothing said in between
    ]
    first, second = pieces_of(turns)
    assert (first.prompt_ids, first.ids) == ((5,), (6, 1, 7, 8, 1)) and first.mask == (True, True, False, True, True)
    assert (second.prompt_ids, second.ids) == ((5, 6, 2, 7), (9, 1, 3, 1)) and all(second.mask)


def test_the_start_may_give_the_prompt_and_all_of_a_group_begin_alike():
    seeds = []

    def factory(row, seed):
        seeds.append(seed)
        return Scripted([END], start=Observation(content="hello"))

    source = source_of(factory, lambda index, turn: "x|", group_size=3, rows=[{"prompt": "ab"}, {"prompt": "cd"}])
    wave = source.wave(source.next_rows(0, 2), step=4)
    assert [g.prompt_text for g in wave.groups] == ["hello", "hello"]
    assert [len(g.rollouts) for g in wave.groups] == [3, 3]
    assert sorted(seeds) == sorted(environment_seed(0, 4, i) for i in (0, 0, 0, 1, 1, 1)) and len(set(seeds)) == 2


LIMITS = {
    "env_truncated": ([Observation(is_truncated=True)], {}),
    "max_turns": ([ASK] * 9, {"max_turns": 3}),
    "max_tokens": ([ASK] * 9, {"max_tokens": 7}),
    "cut": ([ASK], {"limit": 2}),
}


@pytest.mark.parametrize("ending", LIMITS)
def test_limits_are_labelled_counted_and_scored(ending):
    answers, settings = LIMITS[ending]
    rollout, wave, _ = one(answers, score=0.5, **settings)
    assert rollout.ending == ending and rollout.is_truncated and rollout.reward == 0.5
    assert shown(wave.facts)[f"environment/ended/{ending}"] == 1.0
    assert not flatten(wave.groups, torch.ones(1), drop_truncated=True)[0].is_trained


def test_the_token_limit_counts_all_that_stands_behind_the_prompt():
    rollout, wave, _ = one([ASK] * 9, max_tokens=7)
    (sample,) = flatten(wave.groups, torch.ones(1), False)
    assert len(sample.completion_ids) == 7 and text_of(sample.completion_ids) == "x y|bz|"
    rollout, wave, _ = one([ASK] * 9, context=8)  # two of the prompt, four and one, room for one more
    (sample,) = flatten(wave.groups, torch.ones(1), False)
    assert text_of(sample.completion_ids) == "x y|bz" and rollout.ending == "max_tokens"


def test_long_observations_are_cut_and_marked():
    _, wave, _ = one([Observation(content="a b c d e f g"), END], max_observation_tokens=5)
    (sample,) = flatten(wave.groups, torch.ones(1), False)
    assert text_of(sample.completion_ids) == "x y|a b cz|"  # the mark has characters this tokenizer lacks
    assert shown(wave.facts)["environment/observations_cut"] == 1.0


def hang():
    time.sleep(30)


async def hang_softly():
    await asyncio.sleep(30)


FAILURES = {
    "raises": (ValueError("no"), "env_error", "ValueError: no"),
    "hangs": (hang, "env_timeout", "no answer within 0.2 s"),
    "hangs in a coroutine": (hang_softly, "env_timeout", "no answer within 0.2 s"),
    "returns a dict": ({"content": "x"}, "env_error", "returned a dict"),
    "returns nothing": (None, "env_error", "returned a NoneType"),
    "gives no number": (Observation(reward="much"), "env_error", "reward 'much'"),  # type: ignore[arg-type]
    "gives NaN": (Observation(reward=math.nan), "env_error", "reward nan"),
    "says what has no tokens": (Observation(content="ÄÖ"), "env_error", "cannot encode"),
    "says messages to bare text": (Observation(content=[{"role": "user", "content": "x"}]), "env_error", "bare text"),
    "says half a message": (Observation(content=[{"role": "user"}]), "env_error", "role and content"),
}


AT_START = [name for name in FAILURES if name != "says messages to bare text" and not name.startswith("gives")]


@pytest.mark.parametrize(("name", "where"), [*((n, "start") for n in AT_START), *((n, "step") for n in FAILURES)])
def test_a_failing_environment_costs_its_rollout_and_nothing_else(name, where):
    answer, ending, words = FAILURES[name]
    turns = {"start": answer} if where == "start" else {"start": Observation()}
    made = []

    def factory(row, seed):
        made.append(None)
        bad = len(made) == 2
        return Scripted([answer if bad and where == "step" else ASK, END], turns["start"] if bad else Observation())

    source = source_of(factory, lambda index, turn: WORDS[turn], group_size=4, step_timeout=0.2)
    wave = source.wave(source.next_rows(0, 1), step=0)
    rollouts = wave.groups[0].rollouts
    assert [r.ending for r in rollouts].count(ending) == 1 and [r.ending for r in rollouts].count("done") == 3
    (bad,) = [r for r in rollouts if r.ending == ending]
    assert math.isnan(bad.reward) and any(words in error for error in wave.errors)
    assert shown(wave.facts)["environment/failed"] == 1.0
    advantage, _ = GroupStd()(advantage_input(wave.groups), None)
    samples = flatten(wave.groups, advantage, False)
    assert [s.is_trained for s in samples] == [r is not bad for r in rollouts]
    step = assemble(samples, torch.device("cpu"))
    assert step.mask.any(dim=1).tolist() == [r is not bad for r in rollouts]
    collected = Direct(source=source, prompts_per_step=1).collect(0, 0)
    metrics = rollout_metrics(collected, ("environment",), [0.0] * 4)
    assert all(math.isfinite(value) for value in metrics.values())


def test_failures_can_be_scored_instead():
    rollout, _, _ = one([ValueError("no")], on_failure="score", failure_reward=-1.0)
    assert rollout.ending == "env_error" and rollout.reward == -1.0


def test_too_many_failures_stop_the_run_with_the_culprit():
    with pytest.raises(EnvironmentFailure, match=r"environment file.py:env: 1 of 1 episodes failed \(1 env_error\)"):
        one([ValueError("no")], failure_limit=0.5)
    one([ValueError("no")], failure_limit=1.0)


def test_all_calls_of_a_rollout_have_a_limit_together():
    slow = lambda: (time.sleep(0.1), ASK)[1]  # noqa: E731
    rollout, _, _ = one([slow] * 9, rollout_timeout=0.15, max_turns=9)
    assert rollout.ending == "rollout_timeout" and len(rollout.turns) == 2


def test_score_goes_before_the_turns_rewards_and_failing_to_score_is_a_failure():
    assert one([ASK, END], score=3.0)[0].reward == 3.0
    assert one([ASK, END], score=None)[0].reward == 1.25
    rollout, wave, _ = one([ASK, END], score=ValueError("lost"))
    assert math.isnan(rollout.reward) and "lost" in wave.errors[0]


def test_reward_functions_read_the_conversation_beside_the_environments_score():
    seen = []

    def words(completions, conversation, **columns):
        seen.extend(conversation)
        return [float(len(c)) for c in completions]

    rollout, _, _ = one([ASK, END], rewards=[words])
    assert rollout.rewards == (1.25, 1.0) and rollout.reward == 2.25
    assert [m["role"] for m in seen[0]] == ["assistant", "environment", "assistant"]


def test_environments_that_await_are_in_flight_together():
    async def slowly():
        await asyncio.sleep(0.2)
        return END

    source = source_of(lambda row, seed: Scripted([slowly]), lambda index, turn: "x|", group_size=40)
    started = time.perf_counter()
    wave = source.wave(source.next_rows(0, 1), step=0)
    assert all(r.ending == "done" for r in wave.groups[0].rollouts)
    assert time.perf_counter() - started < 2  # one after another: 8 s


def test_what_is_sampled_does_not_depend_on_how_fast_environments_are():
    def factory_of(delays):
        left = list(delays)

        def factory(row, seed):
            delay = left.pop(0)
            return Scripted([lambda: (time.sleep(delay), ASK)[1], END])

        return factory

    requests: list[list] = []
    for delays in ((0.0, 0.1, 0.0), (0.1, 0.0, 0.05)):
        source = source_of(factory_of(delays), lambda index, turn: f"{index}|", group_size=3)
        seen: list = []
        sample = source.sampler.sample
        source.sampler.sample = lambda wave, seen=seen, sample=sample: (seen.append(list(wave)), sample(wave))[1]
        source.wave(source.next_rows(0, 1), step=0)
        requests.append(seen)
    assert requests[0] == requests[1]
    assert [[r.indices for r in wave] for wave in requests[0]] == [[(0, 1, 2)], [(0,), (1,), (2,)]]
    assert requests[0][1][2].prompt_ids == ids_of("ab2|b") and requests[0][1][2].turn == 1
