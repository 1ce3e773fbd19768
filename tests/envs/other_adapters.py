"""Real environments of libraries that do not install beside this project's pinned versions: OpenEnv 0.10, verifiers v0
(0.3.1), GEM 0.1. Not collected by name:

    .venv-envs/bin/python -m pytest tests/envs/other_adapters.py
"""

from typing import Any

import pytest
from real_environments import HERMES_CALL, OTHER_FACTORIES, call, play, say

from gspo.envs.adapters import adapt
from gspo.envs.adapters.openenv import action_class, action_parser, text_of
from gspo.envs.base import Action
from gspo.envs.calls import Calls
from gspo.envs.check import check_env

LOSING = {
    "gem": ([r"\boxed{3}", r"\boxed{4}", r"\boxed{77}"], 0.0),
    "verifiers_single_turn": (["5"], 0.0),
    "verifiers_multi_turn": (["1", "3", "x", "-"], 0.5),
    "verifiers_tools": ([HERMES_CALL % ("square", '{"x": "a"}'), "17"], 0.0),
    "openenv_local": (["1", "2"], 0.0),
    "openenv_served": (['{"add": 5}', '{"add": 5}', '{"add": 5}'], 0.0),
    "openenv_sessions": (["5", "5", "5"], 0.0),
}


@pytest.mark.parametrize("name", OTHER_FACTORIES)
def test_what_wins_is_paid_and_what_loses_is_not(name: str):
    factory, rows, actions = OTHER_FACTORIES[name]()
    won = play(factory, rows[0], actions)
    assert won.is_done and won.reward == pytest.approx(1.0)
    losing, reward = LOSING[name]
    assert play(factory, rows[0], losing).reward == pytest.approx(reward)


@pytest.mark.parametrize("name", OTHER_FACTORIES)
def test_the_laws_hold(name: str):
    factory, rows, actions = OTHER_FACTORIES[name]()
    report = check_env(factory, rows[:1], actions=actions)
    assert report.ok, report


def test_gem_spawns_where_it_can():
    def guess() -> Any:
        import gem

        return gem.make("game:GuessTheNumber-v0-hard")

    def question() -> Any:
        import gem

        return gem.make("rg:chain_sum", size=5, seed=1)

    with Calls() as calls:
        env = adapt(guess)({"prompt": []}, 3)
        call(calls, env.start)
        number = env._env.game_number
        fork = env.fork()  # GEM's games do not write spawn: a deep copy
        assert say(calls, fork, rf"\boxed{{{number}}}").reward == 1.0
        assert say(calls, env, rf"\boxed{{{number}}}").reward == 1.0
        env = adapt(question)({"prompt": []}, 3)
        call(calls, env.start)
        fork = env.fork()
        answer = env._env.data["answer"]
        assert say(calls, fork, rf"\boxed{{{answer}}}").reward == 1.0


def test_verifiers_v0_ends_as_it_would_by_itself():
    """Its own limit on turns, a run's limit, and an error of its own."""
    factory, rows, _ = OTHER_FACTORIES["verifiers_multi_turn"]()
    assert play(factory, rows[0], ["x", "x", "x", "x"]).is_done
    cut = play(factory, rows[0], ["1"])
    assert not cut.is_done and cut.reward == 0.5


def test_verifiers_v0_errors_are_the_environments():
    import verifiers as vf
    from datasets import Dataset

    class Broken(vf.MultiTurnEnv):
        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            raise vf.InfraError("no sandbox")

    data = Dataset.from_list([{"question": "?", "answer": ""}])
    broken = adapt(Broken(dataset=data, rubric=vf.Rubric(), max_turns=3))
    with Calls() as calls:
        env = broken({"prompt": [{"role": "user", "content": "?"}], "answer": "", "example_id": 0}, 0)
        call(calls, env.start)
        (called,) = calls.together([lambda: env.step(Action(text="x"))], 10.0)
        assert called.status == "error" and "InfraError" in called.message

    def over_the_group(completions: Any) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(ValueError, match="whole groups"):
        adapt(vf.SingleTurnEnv(dataset=data, rubric=vf.Rubric(funcs=[over_the_group])))


def test_openenv_actions_and_observations_as_text():
    from counting_environment import CountAction, Counting, CountingClient, CountObservation
    from openenv.core import GenericEnvClient
    from openenv.core.env_server.types import Observation

    assert action_class(Counting()) is CountAction
    assert action_class(CountingClient(base_url="http://127.0.0.1:1")) is CountAction
    assert action_class(GenericEnvClient(base_url="http://127.0.0.1:1")) is None
    parse = action_parser(CountAction)
    assert parse("3") == parse('I add {"add": 3}.') == CountAction(add=3)
    for text in ("three", '{"add": "x"}', "{"):
        with pytest.raises(ValueError, match="does not fit: add: Input should be a valid integer"):
            parse(text)
    with pytest.raises(ValueError, match="must be a JSON object"):
        action_parser(None)("3")
    assert text_of(CountObservation(total=1, say="go", reward=1.0)) == "total: 1\nsay: go"
    assert text_of({"board": "X.", "reward": 1}) == "X."
    assert text_of(Observation()) == ""


def test_openenv_sessions_are_apart():
    factory, _, _ = OTHER_FACTORIES["openenv_sessions"]()
    with Calls() as calls:
        envs = [factory({"prompt": [], "reset": {"goal": 3}}, 0) for _ in range(4)]
        calls.together([env.start for env in envs], 10.0)
        for env in envs:
            assert say(calls, env, "1").content.startswith("total: 1")
        refused = say(calls, envs[0], "one")
        assert refused.content.startswith("error: the action does not fit") and refused.facts == {"bad_actions": 1}
        calls.together([env.close for env in envs], 10.0)
