"""One real environment of every library, with what wins it. Winning never depends on the seed.

REAL_FACTORIES install into .venv (extra `environments`); OTHER_FACTORIES into .venv-envs, where
tests/envs/other_adapters.py runs them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gspo.envs.adapters import adapt, reasoning_gym_rows, verifiers_rows
from gspo.envs.base import Action, Env, EnvFactory, Observation, Scores
from gspo.envs.calls import Calls
from gspo.tasks.base import Row

Real = tuple[EnvFactory, list[Row], list[str]]
"""A factory, rows of which the first is meant, and the actions that win it."""
HERMES_CALL = '<tool_call>{"name": "%s", "arguments": %s}</tool_call>'


@dataclass(frozen=True, kw_only=True)
class Played:
    """An episode that is over, or out of actions."""

    observations: list[Observation]
    """start()'s first."""
    reward: float
    """As a run takes it: the score, without one the sum of the turns' rewards."""

    @property
    def is_done(self) -> bool:
        return self.observations[-1].is_done


def play(factory: EnvFactory, row: Row, actions: list[str], seed: int = 7) -> Played:
    """Plays an episode with the calls that a run makes."""
    with Calls() as calls:
        env = call(calls, lambda: factory(row, seed))
        observations = [call(calls, env.start)]
        for turn, text in enumerate(actions):
            observations.append(say(calls, env, text, turn))
            if observations[-1].is_done:
                break
        score = call(calls, env.score) if isinstance(env, Scores) else None
        call(calls, env.close)
    total = sum(o.reward for o in observations if o.reward is not None)
    return Played(observations=observations, reward=total if score is None else score)


def say(calls: Calls, env: Env, text: str, turn: int = 0) -> Observation:
    return call(calls, lambda: env.step(Action(text=text, turn=turn)))


def call(calls: Calls, function: Callable[[], Any]) -> Any:
    (called,) = calls.together([function], 60.0)
    assert called.status == "ok", called.message
    return called.value


class Vault:
    """An environment of TRL's kind: its row has the code, two of its tools open it."""

    def reset(self, code: str, **columns: Any) -> str:
        self.code, self.is_open, self.looks = code, False, 0
        return "\nOpen the vault."

    def look(self) -> str:
        """Looks at the note on the vault."""
        self.looks += 1
        return f"It says {self.code}."

    async def enter(self, code: str) -> str:
        """Enters a code.

        Args:
            code: The digits to enter.
        """
        self.is_open = self.is_open or code == self.code
        return "It opens." if self.is_open else "Nothing happens."

    def get_reward(self) -> float:
        return float(self.is_open)


def trl() -> Real:
    rows = [{"prompt": [{"role": "user", "content": "You have two tools."}], "code": code} for code in ("0417", "2210")]
    return adapt(Vault), rows, [HERMES_CALL % ("look", "{}"), HERMES_CALL % ("enter", '{"code": "0417"}'), "Done."]


def reasoning_gym() -> Real:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("chain_sum", size=4, seed=3)
    rows = reasoning_gym_rows(dataset, 4)
    return adapt(dataset), rows, [rows[0]["answer"]]


def gymnasium() -> Real:
    """The way round the holes of the frozen lake: 0 left, 1 down, 2 right, 3 up."""

    def lake() -> Any:
        import gymnasium

        return gymnasium.make("FrozenLake-v1", is_slippery=False)

    return adapt(lake), [{"prompt": [{"role": "system", "content": "Say 0-3."}]}], ["1", "1", "2", "2", "1", "2"]


def textarena() -> Real:
    """The tower of three discs, in the seven moves that it takes."""

    def tower() -> Any:
        import textarena

        return textarena.make("TowerOfHanoi-v0-raw")

    moves = ("A C", "A B", "C B", "A C", "B A", "B C", "A C")
    return adapt(tower), [{"prompt": []}], [f"[{move}]" for move in moves]


def textarena_two_players() -> Real:
    """Tic-tac-toe against one who takes the first square that is free."""

    def board() -> Any:
        import textarena

        return textarena.make("TicTacToe-v0-raw")

    def first_free(shown: str) -> str:
        return shown.rpartition("Available Moves: ")[2].split(",")[0].strip().strip("'")

    return adapt(board, num_players=2, opponent=first_free), [{"prompt": []}], ["[4]", "[2]", "[6]"]


def verifiers_v1() -> Real:
    import verifiers.v1 as vf

    config = vf.SingleAgentEnvConfig(taskset={"id": "doubling_taskset"}, agent={"runtime": {"type": "subprocess"}})
    environment = vf.load_environment(config)
    return adapt(environment), verifiers_rows(environment, 3), ["2"]


def gem() -> Real:
    def guess() -> Any:
        import gem

        return gem.make("game:GuessTheNumber-v0-easy", min_number=7, max_number=7, max_turns=3)

    return adapt(guess), [{"prompt": []}], [r"\boxed{3}", r"\boxed{7}"]


def verifiers_single_turn() -> Real:
    import verifiers as vf
    from datasets import Dataset

    def exact(completion: Any, answer: str) -> float:
        return float(completion[-1]["content"].strip() == answer)

    data = Dataset.from_list([{"question": "2+2?", "answer": "4"}, {"question": "3+3?", "answer": "6"}])
    environment = vf.SingleTurnEnv(dataset=data, rubric=vf.Rubric(funcs=[exact]), system_prompt="Say a number.")
    return adapt(environment), verifiers_rows(environment, 2), ["4"]


def verifiers_multi_turn() -> Real:
    import verifiers as vf
    from datasets import Dataset

    class Ladder(vf.MultiTurnEnv):
        """Count up: each turn one more than the environment said."""

        async def setup_state(self, state: Any) -> Any:
            state["height"] = 0
            return state

        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            state["height"] += messages[-1]["content"].strip() == str(state["height"] + 1)
            return [{"role": "user", "content": str(state["height"])}]

        @vf.stop
        async def is_up(self, state: Any) -> bool:
            return state["height"] == 2

    async def height(state: Any) -> float:
        return state["height"] / 2

    data = Dataset.from_list([{"question": "0", "answer": ""}])
    environment = Ladder(dataset=data, rubric=vf.Rubric(funcs=[height], weights=[1.0]), max_turns=4)
    return adapt(environment), verifiers_rows(environment, 1), ["1", "2", "-"]


def verifiers_tools() -> Real:
    import verifiers as vf
    from datasets import Dataset

    def square(x: int) -> int:
        """Squares a number.

        Args:
            x: The number.
        """
        return x * x

    def load_environment(question: str) -> Any:
        data = Dataset.from_list([{"question": question, "answer": "289"}])
        return vf.ToolEnv(dataset=data, tools=[square], rubric=vf.Rubric(funcs=[exact]), max_turns=4)

    def exact(completion: Any, answer: str) -> float:
        return float(completion[-1]["content"].strip() == answer)

    rows = verifiers_rows(load_environment("17 squared?"), 1)
    return adapt(load_environment, question="17 squared?"), rows, [HERMES_CALL % ("square", '{"x": 17}'), "289"]


def openenv_local() -> Real:
    from counting_environment import Counting

    return adapt(Counting), [{"prompt": [], "reset": {"goal": 2}}], ["1", '{"add": 1}']


def openenv_served() -> Real:
    from counting_environment import CountAction, served
    from openenv.core import GenericEnvClient

    url = served()
    factory = adapt(lambda: GenericEnvClient(base_url=url), action=CountAction)
    return factory, [{"prompt": [], "reset": {"goal": 2}}], ['{"add": 1}', '{"add": 1}']


def openenv_sessions() -> Real:
    from counting_environment import CountingClient, served

    client = CountingClient(base_url=served()).sync()
    return adapt(client), [{"prompt": [], "reset": {"goal": 1}}], ["1"]


REAL_FACTORIES: dict[str, Callable[[], Real]] = {
    "trl": trl,
    "reasoning_gym": reasoning_gym,
    "gymnasium": gymnasium,
    "textarena": textarena,
    "textarena_two_players": textarena_two_players,
    "verifiers_v1": verifiers_v1,
}
OTHER_FACTORIES: dict[str, Callable[[], Real]] = {
    "gem": gem,
    "verifiers_single_turn": verifiers_single_turn,
    "verifiers_multi_turn": verifiers_multi_turn,
    "verifiers_tools": verifiers_tools,
    "openenv_local": openenv_local,
    "openenv_served": openenv_served,
    "openenv_sessions": openenv_sessions,
}
