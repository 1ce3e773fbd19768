"""Environments of other libraries, real ones, from beginning to end. tests/envs/other_adapters.py has those that do not
install beside this project's pinned versions."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from real_environments import HERMES_CALL, REAL_FACTORIES, Vault, call, play, say

from gspo.envs.adapters import adapt, gymnasium_env, program_env, textarena_env, trl_env
from gspo.envs.adapters.endpoint import Outcome
from gspo.envs.adapters.global_random import GlobalRandom
from gspo.envs.adapters.opening import opening
from gspo.envs.base import Action, Forks, Observation
from gspo.envs.calls import Calls
from gspo.envs.check import check_env

LOSING = {
    "trl": ([HERMES_CALL % ("enter", '{"code": "0000"}'), "Done."], 0.0),
    "reasoning_gym": (["no idea"], 0.0),
    "gymnasium": (["1", "2"], 0.0),
    "textarena": (["[B A]", "[B A]"], 0.0),
    "textarena_two_players": (["[8]", "[7]", "[4]"], -1.0),
    "verifiers_v1": (["3", "4"], 0.0),
}


@pytest.mark.parametrize("name", REAL_FACTORIES)
def test_what_wins_is_paid_and_what_loses_is_not(name: str):
    factory, rows, actions = REAL_FACTORIES[name]()
    won = play(factory, rows[0], actions)
    assert won.is_done and won.reward == 1.0
    losing, reward = LOSING[name]
    lost = play(factory, rows[0], losing)
    assert lost.is_done and lost.reward == reward


@pytest.mark.parametrize("name", REAL_FACTORIES)
def test_the_laws_hold(name: str):
    factory, rows, actions = REAL_FACTORIES[name]()
    report = check_env(factory, rows[:1], actions=actions)
    assert report.ok, report


def test_every_library_is_there():
    """No test here is skipped: what is missing is named."""
    assert set(REAL_FACTORIES) == set(LOSING)


def test_global_generators_are_private_to_a_game():
    import random

    import numpy as np

    def draws(seed: int) -> list[float]:
        with GlobalRandom(seed):
            return [random.random(), float(np.random.rand())]

    random.seed(1)
    outer = random.getstate()
    one, other = GlobalRandom(5), GlobalRandom(5)
    found: list[list[float]] = [[], []]
    for _ in range(3):
        for i, generators in enumerate((one, other)):
            with generators:
                found[i] += [random.random(), float(np.random.rand())]
    assert found[0] == found[1] and len(set(found[0])) == 6
    assert random.getstate() == outer
    assert draws(2**40 + 1) != draws(1)


def test_the_first_words_join_the_rows_prompt():
    user = {"role": "user", "content": "a"}
    assert opening({"prompt": "a"}, "b") == "a\n\nb"
    assert opening({"prompt": ""}, "b") == opening({}, "b") == "b"
    assert opening({"prompt": []}, "b") == [{"role": "user", "content": "b"}]
    assert opening({"prompt": [user]}, "b", between="") == [{"role": "user", "content": "ab"}]
    system = {"role": "system", "content": "s"}
    assert opening({"prompt": [system]}, "b") == [system, {"role": "user", "content": "b"}]
    parts = [{"type": "text", "text": "b"}]
    assert opening({"prompt": [user]}, parts)[0]["content"] == [{"type": "text", "text": "a"}, *parts]
    with pytest.raises(ValueError, match="list of messages"):
        opening({"prompt": "a"}, parts)


# TRL


class Silent:
    """Says nothing, has no tools and no reward of its own."""

    def reset(self, **row: Any) -> None: ...


class Judged:
    def reset(self, **row: Any) -> list[dict[str, Any]]:
        return [{"type": "text", "text": "Look."}]

    def see(self) -> str:
        """Sees."""
        raise OSError("dark")

    async def get_reward(self) -> float:
        return 0.25


def test_trl_classes_by_name():
    factory = adapt({"silent": Silent, "judged": Judged, "vault": Vault}, deadline=5.0)
    silent = play(factory, {"prompt": [{"role": "user", "content": "?"}], "environment": "silent"}, ["x"])
    assert silent.observations[0] == Observation() and silent.is_done and silent.reward == 0.0
    judged = play(factory, {"environment": "judged"}, [HERMES_CALL % ("see", "{}"), "x"])
    assert judged.observations[0].content[0]["content"] == [
        {"type": "text", "text": ""},
        {"type": "text", "text": "Look."},
    ]
    assert judged.observations[1].content[0]["content"] == "error: OSError: dark"
    assert judged.reward == 0.25
    with pytest.raises(ValueError, match="environment is 'safe'; there are: silent, judged, vault"):
        factory({"environment": "safe"}, 0)


def test_trl_objects_do_not_share_state():
    factory = trl_env(Vault)
    row = {"prompt": [{"role": "user", "content": "?"}], "code": "1"}
    assert play(factory, row, [HERMES_CALL % ("enter", '{"code": "1"}'), "x"]).reward == 1.0
    assert play(factory, row, ["x"]).reward == 0.0


# Gymnasium


def test_gymnasium_seeds_and_forks():
    def slippery() -> Any:
        import gymnasium

        return gymnasium.make("FrozenLake-v1", is_slippery=True)

    factory = adapt(slippery)
    row = {"prompt": []}
    walks = [[o.content for o in play(factory, row, ["2"] * 6, seed=s).observations] for s in (3, 3, 4, 5, 6)]
    assert walks[0] == walks[1]
    assert len({str(walk) for walk in walks}) > 1
    with Calls() as calls:
        env = factory(row, 3)
        call(calls, env.start)
        say(calls, env, "2")
        assert isinstance(env, Forks)
        fork = env.fork()
        assert [say(calls, fork, "2") for _ in range(3)] == [say(calls, env, "2") for _ in range(3)]


def test_gymnasium_of_numbers_needs_words():
    def pole() -> Any:
        import gymnasium

        return gymnasium.make("CartPole-v1")

    with pytest.raises(ValueError, match="give render"):
        adapt(pole)({"prompt": []}, 0).start()
    words = {"left": 0, "right": 1}

    def parse(text: str) -> int:
        if text not in words:
            raise ValueError("say left or right")
        return words[text]

    factory = adapt(pole, render=lambda state: f"angle {state[2]:+.2f}", parse=parse)
    played = play(factory, {"prompt": []}, ["left", "up", "right"])
    assert played.observations[2] == Observation(content="error: say left or right", facts={"bad_actions": 1})
    assert played.reward == 2.0

    def swing() -> Any:
        import gymnasium

        return gymnasium.make("Pendulum-v1")

    with pytest.raises(ValueError, match="give parse"):
        adapt(swing, render=str)({"prompt": []}, 0)


def test_gymnasium_limits_are_truncations():
    def short() -> Any:
        import gymnasium

        return gymnasium.make("FrozenLake-v1", is_slippery=False, max_episode_steps=2)

    last = play(gymnasium_env(short), {"prompt": []}, ["0", "0"]).observations[-1]
    assert last.is_done and last.is_truncated
    for text in ("7", "-1", "up", "9" * 30):
        refused = play(gymnasium_env(short), {"prompt": []}, [text]).observations[-1]
        assert refused.content == "error: the action must be a whole number from 0 to 3"


# TextArena


def tic_tac_toe() -> Any:
    import textarena

    return textarena.make("TicTacToe-v0")


def test_textarena_against_itself_and_from_the_other_seat():
    played = play(textarena_env(tic_tac_toe, num_players=2), {"prompt": []}, ["[0]", "[3]", "[1]", "[4]", "[2]"])
    assert played.is_done and played.reward == 1.0
    second = textarena_env(tic_tac_toe, num_players=2, player=1, opponent=lambda shown: "[8]")
    played = play(second, {"prompt": []}, ["[0]", "[1]", "[2]"])
    assert "[8]" in str(played.observations[0].content)
    assert played.is_done and played.reward == 1.0  # the opponent's second [8] is no move
    for wrong in ({"player": 1}, {"opponent": str}):
        with pytest.raises(ValueError, match=r"player|opponent"):
            textarena_env(tic_tac_toe, **wrong)


def test_textarena_says_only_what_is_new():
    factory = textarena_env(tic_tac_toe, num_players=2)
    first, second, third = (o.content for o in play(factory, {"prompt": []}, ["[0]", "[3]"]).observations)
    assert "You are Player 0" in first[0]["content"]
    assert "You are Player 1" in second and "You are Player" not in third
    assert "cell 3" in third and "Player 0 placed" not in third.partition("cell 3")[2]


def guess_the_number() -> Any:
    import textarena

    return textarena.make("GuessTheNumber-v0-raw")


def test_textarena_numbers_are_the_seeds_and_forks_keep_them():
    """The hidden number comes from the global generator: side by side, equal seeds must have equal numbers."""
    factory, row = adapt(guess_the_number), {"prompt": []}
    with Calls() as calls:
        envs = [factory(row, seed) for seed in (1, 2, 3, 1, 2, 3)]
        started = calls.together([env.start for env in envs], 10.0)
        assert all(called.status == "ok" for called in started)
        numbers = [env._env.game_number for env in envs]
        assert numbers[:3] == numbers[3:] and len(set(numbers)) > 1
        fork = envs[0].fork()
        for env in (fork, envs[0], envs[3]):
            last = say(calls, env, f"[{numbers[0]}]")
            assert last.is_done and last.reward == 1.0


# Programs


def test_a_program_with_tools_that_summarises():
    """Turns go on behind each other; a request that does not begins the conversation anew."""

    async def program(url: str, row: dict, seed: int) -> Outcome:
        tool = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object", "properties": {}}}}
        messages = [{"role": "user", "content": [{"type": "text", "text": row["question"]}]}]
        reply = (await ask(url, messages, tools=[tool]))["choices"][0]
        assert reply["finish_reason"] == "tool_calls" and reply["message"]["content"] == "Let me see."
        (made,) = reply["message"]["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == {"x": 2}
        messages += [reply["message"], {"role": "tool", "tool_call_id": made["id"], "content": "4"}]
        second = await ask(url, messages, tools=[tool])
        assert second["choices"][0]["message"] == {"role": "assistant", "content": "So it is 4."}
        last = await ask(url, [{"role": "user", "content": "Summary: 4. Answer?"}])
        return Outcome(reward=float(last["choices"][0]["message"]["content"] == "4"), facts={"asked": 3.0})

    first = f"Let me see.\n{HERMES_CALL % ('calc', json.dumps({'x': 2}))}"
    played = play(program_env(program), {"question": "2+2?"}, [first, "So it is 4.", "4"])
    start, called, summary, last = played.observations
    assert start.content == [{"role": "user", "content": "2+2?"}] and start.tools[0]["function"]["name"] == "calc"
    assert called.content == [{"role": "tool", "tool_call_id": "call_1_0", "content": "4"}] and not called.rewrites
    assert summary.rewrites and summary.content == [{"role": "user", "content": "Summary: 4. Answer?"}]
    assert last.is_done and last.facts == {"asked": 3.0} and played.reward == 1.0


async def ask(url: str, messages: list[dict], **more: Any) -> dict[str, Any]:
    body = json.dumps({"model": "policy", "messages": messages, **more}).encode()
    return json.loads(await asyncio.to_thread(fetched, f"{url}/chat/completions", body))


def fetched(url: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as reply:
        return reply.read()


def test_streams_and_models():
    async def program(url: str, row: dict, seed: int) -> float:
        assert json.loads(await asyncio.to_thread(fetched, f"{url}/models"))["data"][0]["id"] == "policy"
        body = json.dumps({"messages": row["prompt"], "stream": True}).encode()
        events = (await asyncio.to_thread(fetched, f"{url}/chat/completions", body)).decode().split("\n\n")
        said, done = (json.loads(event.removeprefix("data: ")) for event in events[:2])
        assert events[2] == "data: [DONE]" and done["choices"][0]["finish_reason"] == "length"
        return float(said["choices"][0]["delta"]["content"] == "hi")

    with Calls() as calls:
        env = program_env(program)({"prompt": [{"role": "user", "content": "?"}]}, 0)
        call(calls, env.start)
        assert call(calls, lambda: env.step(Action(text="hi", is_cut=True))).is_done
        assert call(calls, env.score) == 1.0
        call(calls, env.close)


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"messages": [], "n": 2}', b'{"messages": 3}'])
def test_requests_that_cannot_be_answered_are_refused(body: bytes):
    async def program(url: str, row: dict, seed: int) -> float:
        try:
            await asyncio.to_thread(fetched, f"{url}/chat/completions", body)
        except urllib.error.HTTPError as error:
            with error:
                refusal = error.code
        await ask(url, [{"role": "user", "content": "go on"}])
        return float(refusal)

    assert play(program_env(program), {}, ["x"]).reward == 400.0


def test_a_program_that_fails_or_never_asks_says_so():
    async def broken(url: str, row: dict, seed: int) -> float:
        await ask(url, [{"role": "user", "content": "?"}])
        raise KeyError("lost")

    async def mute(url: str, row: dict, seed: int) -> float:
        return 1.0

    with Calls() as calls:
        env = program_env(broken)({}, 0)
        call(calls, env.start)
        (called,) = calls.together([lambda: env.step(Action(text="x"))], 10.0)
        assert called.status == "error" and "lost" in called.message
        (called,) = calls.together([program_env(mute)({}, 0).start], 10.0)
        assert called.status == "error" and "before it asked" in called.message


def test_a_program_is_cancelled_when_its_episode_is_closed():
    ended = []

    async def endless(url: str, row: dict, seed: int) -> float:
        try:
            while True:
                await ask(url, [{"role": "user", "content": "more"}])
        finally:
            await asyncio.sleep(0.05)
            ended.append(seed)

    with Calls() as calls:
        env = program_env(endless)({}, 3)
        call(calls, env.start)
        assert say(calls, env, "x").rewrites
        call(calls, env.close)
    assert ended == [3]


def test_verifiers_rollouts_that_a_run_cuts_are_scored_as_they_stand():
    """The run's limit on turns comes before the harness's second try."""
    factory, rows, _ = REAL_FACTORIES["verifiers_v1"]()
    assert [row["prompt"][1]["content"] for row in rows] == ["Twice 1?", "Twice 2?", "Twice 3?"]
    cut = play(factory, rows[2], ["5"])
    assert not cut.is_done and cut.reward == 0.0
    second = play(factory, rows[2], ["5", "6"])
    assert second.observations[1].content == [{"role": "user", "content": "Wrong. Again?"}]
    assert not second.observations[1].rewrites
    assert second.reward == 0.5 and second.observations[2].facts == {"tries": 2.0}


def test_verifiers_rollouts_side_by_side():
    factory, rows, _ = REAL_FACTORIES["verifiers_v1"]()
    with Calls() as calls:
        envs = [factory(rows[i % 3], 0) for i in range(12)]
        assert all(c.status == "ok" for c in calls.together([env.start for env in envs], 60.0))
        answers = [lambda env=env, i=i: env.step(Action(text=str(2 * (i % 3 + 1)))) for i, env in enumerate(envs)]
        assert all(c.value.is_done for c in calls.together(answers, 60.0))
        assert [c.value for c in calls.together([env.score for env in envs], 60.0)] == [1.0] * 12
        calls.together([env.close for env in envs], 60.0)


# Detection


class Own:
    def start(self) -> Observation:
        return Observation(content="?")

    def step(self, action: Action) -> Observation:
        return Observation(is_done=True, reward=1.0)

    def close(self) -> None: ...


def own(row: dict, seed: int, level: int = 1) -> Own:
    assert level == 2 or row["prompt"]
    return Own()


class OwnFactory:
    def __init__(self, level: int):
        self.level = level

    def __call__(self, row: dict, seed: int) -> Own:
        return Own()


def test_ones_own_factories_pass_through():
    assert adapt(own) is own
    assert play(adapt(own, level=2), {"prompt": ""}, ["x"]).reward == 1.0
    assert adapt(OwnFactory, level=3).level == 3
    made = OwnFactory(4)
    assert adapt(made) is made


def test_options_go_to_the_function_or_to_the_adapter():
    def lake(size: int) -> Any:
        import gymnasium

        return gymnasium.make("FrozenLake-v1", map_name=f"{size}x{size}", is_slippery=False)

    factory = adapt(lake, size=8, render=lambda state: f"at {state}")
    assert play(factory, {"prompt": []}, ["1"]).observations[1].content == "at 8"
    with pytest.raises(ValueError, match="did you mean render"):
        adapt(lake, size=8, rendr=str)


def test_what_cannot_be_made_says_why():
    def lake(size: int, *more: Any, **most: Any) -> Any: ...

    with pytest.raises(ValueError, match="needs options for: size"):
        adapt(lake)
    with pytest.raises(ValueError, match="give the class Vault"):
        adapt(Vault())


class Nothing:
    colour = "grey"


@pytest.mark.parametrize("thing", [Nothing(), Nothing, "TicTacToe-v0", 3])
def test_what_is_no_environment_is_told_what_was_looked_for(thing: Any):
    with pytest.raises(ValueError, match="is text" if isinstance(thing, str) else "Looked for, in this order: TRL"):
        adapt(thing)
