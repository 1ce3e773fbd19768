"""Games of TextArena: one player of a game, against fixed opponents or against itself.

    https://github.com/LeonGuertler/TextArena (0.7.4): ta.make(id); reset(num_players, seed); get_observation() ->
    (player, text); step(action) -> (done, info); close() -> (rewards by player, game info)

A game's rewards come at its end. Fork: a deep copy. A game whose limit on turns is reached says so by its rewards.

Observations: TextArena's default wrapper says everything so far in every turn; only what is new is passed on (with the
player's own move, as the game repeats it). The ids ending in "-raw" give single messages instead, of which those of the
player itself are left out: the shorter conversation.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gspo.envs.adapters.global_random import GlobalRandom
from gspo.envs.adapters.opening import Once, opening
from gspo.envs.base import Action, EnvFactory, Observation
from gspo.tasks.base import Row

Opponent = Callable[[str], str]
"""What another player answers to what the game shows it."""
GAME = -1
"""TextArena's id of the game itself as a speaker."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Who plays."""

    num_players: int
    player: int
    """The policy, from 0."""
    opponent: Opponent | None
    """Everybody else; None where the policy plays them all."""

    def __post_init__(self) -> None:
        if not 0 <= self.player < self.num_players:
            raise ValueError(f"player = {self.player} must be one of the {self.num_players} players, from 0")
        if self.opponent is not None and self.num_players == 1:
            raise ValueError("an opponent needs num_players of 2 or more")


class GameEnv:
    """One game, seen by `player`. Without an opponent the policy moves for all players and is paid as `player`."""

    def __init__(self, env: Any, row: Row, seed: int, generators: GlobalRandom, table: Table) -> None:
        self._env, self._row, self._seed, self._random, self._table = env, row, seed, generators, table
        self._shown: dict[int, str] = {}
        self._is_over, self._once = False, Once()

    def start(self) -> Observation:
        self._once.use()
        with self._random:
            self._env.reset(num_players=self._table.num_players, seed=self._seed)
        said = self._until_our_turn()
        if self._is_over:
            raise RuntimeError(f"the game was over before player {self._table.player} could move; take another seat")
        return Observation(content=opening(self._row, said))

    def step(self, action: Action) -> Observation:
        self._move(action.text)
        said = "" if self._is_over else self._until_our_turn()
        return self._ended() if self._is_over else Observation(content=said)

    def fork(self) -> "GameEnv":
        generators = copy.deepcopy(self._random)
        other = GameEnv(copy.deepcopy(self._env), self._row, self._seed, generators, self._table)
        other._shown, other._is_over = dict(self._shown), self._is_over
        return other

    def close(self) -> None: ...

    def _until_our_turn(self) -> str:
        """Lets the opponents move; what the policy reads next."""
        while not self._is_over:
            with self._random:
                player, observation = self._env.get_observation()
            said = self._new(player, observation)
            if self._table.opponent is None or player == self._table.player:
                return said
            self._move(self._table.opponent(self._shown[player]))
        return ""

    def _move(self, text: str) -> None:
        with self._random:
            self._is_over, _ = self._env.step(action=text)

    def _new(self, player: int, observation: Any) -> str:
        """What this player has not read yet; all of it is kept for opponents, who remember nothing."""
        before = self._shown.get(player, "")
        if isinstance(observation, str):
            self._shown[player] = observation
            return observation.removeprefix(before).lstrip("\n")
        said = "\n".join(
            message if speaker == GAME else f"[Player {speaker}] {message}"
            for speaker, message, _ in observation
            if speaker != player
        )
        self._shown[player] = f"{before}\n{said}".strip()
        return said

    def _ended(self) -> Observation:
        with self._random:
            rewards, info = self._env.close()
        ours = info.get(self._table.player, {})
        return Observation(
            reward=float(rewards[self._table.player]),
            is_done=True,
            facts={"invalid_moves": float(bool(ours.get("invalid_move", False)))},
        )


def textarena_env(
    make: Callable[[], Any] | Any, *, num_players: int = 1, player: int = 0, opponent: Opponent | None = None
) -> EnvFactory:
    """Games of a zero-argument function that makes one, as `lambda: ta.make("TicTacToe-v0-raw")`; or of one that exists
    already, copied for every episode.

    opponent: answers for every other player, and must be a function of what it is shown alone; None: the policy plays
    all sides in one conversation (each side's secrets included).
    Rows: {"prompt": [...]} whose last user message the game's rules are appended to; {"prompt": []} for them alone.
    """
    table = Table(num_players=num_players, player=player, opponent=opponent)

    def factory(row: Row, seed: int) -> GameEnv:
        generators = GlobalRandom(seed)
        with generators:
            env = make() if callable(make) else copy.deepcopy(make)
        return GameEnv(env, row, seed, generators, table)

    return factory
