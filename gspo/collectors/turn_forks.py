"""TL-GRPO: at every turn a group of alternatives behind one history, each scored by the environment.

TL-GRPO 2026, https://arxiv.org/abs/2601.16480 (abstract, introduction and two digests read; no code found):

    h_1 = the task's prompt;  for t = 1..T:
        y_t1..y_tG ~ pi_old(. | h_t),   (r_ti, o_ti) = environment(y_ti)                        a group of its own
        h_t+1 = h_t, y_tc, o_tc                                                                c: the continuation
    A_ti = normalised inside the turn's group;   T x G sequences, each behind its own h_t

A task costs T x G calls of the environment, as G whole episodes of T turns do. Histories are nested prefixes, which
the shared-prefix layout sends through the network once.

Certainty: groups at a turn with the history fixed, one trajectory, scores by the environment: read. The continuation
(`first` is "one trajectory, then alternatives"), ends of episodes and all constants: inferred, hence options.
Departures: a third party's blend with the outcome's advantage is not here.

Environments answer alternatives by `fork` (a copy takes the step, and the chosen copy goes on), or by `evaluate`
(pure; the run's `max_turns` then ends the episode).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from gspo.collectors.base import Facts
from gspo.collectors.episodes import Episode, EpisodeSource, Stage, facts_of, messages_of, timed
from gspo.collectors.source import Wave
from gspo.data import Row
from gspo.envs.base import Evaluates, Forks
from gspo.envs.calls import Calls
from gspo.renderers import Renderer
from gspo.samplers.streams import stream_keys
from gspo.types import FAILED_ENDINGS

Continuation = Literal["first", "best", "random"]


@dataclass(frozen=True, kw_only=True)
class TurnForks:
    """Groups of alternatives, up to `max_turns` of them per prompt. All settings but one are those of `source`."""

    source: EpisodeSource
    continuation: Continuation = "first"

    @property
    def renderer(self) -> Renderer:
        return self.source.renderer

    @property
    def group_size(self) -> int:
        return self.source.group_size

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return self.source.next_rows(cursor, count)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave:
        """One group for every turn of every (prompt id, row), the turns of a prompt in their order."""
        stage, clock = self.source.stage, Counter[str]()
        trunks = [Episode(number=n, prompt_id=prompt_id, row=row, index=0) for n, (prompt_id, row) in enumerate(rows)]
        grown: list[list[Episode]] = []
        with Calls() as calls:
            with timed(clock, "environment"):
                stage.begin(self.source.factory, trunks, step, calls)
            going = [trunk for trunk in trunks if trunk.ending is None]
            while going:
                with timed(clock, "environment"):
                    now = forked(stage, going, self.group_size, calls)
                with timed(clock, "sample"):
                    stage.speak([b for branches in now for b in branches if b.ending is None], step)
                with timed(clock, "environment"):
                    answer(stage, [b for branches in now for b in branches if b.ending is None], calls)
                grown += [branches for branches in now if branches[0].turns]
                chosen = [chosen_of(branches, self.continuation, self.source.seed, step) for branches in now]
                going = [branch for branch in chosen if branch is not None]
            with timed(clock, "environment"):
                stage.close([*trunks, *(branch for branches in grown for branch in branches)], calls)
        with timed(clock, "reward"):
            grown.sort(key=lambda branches: (branches[0].number, len(branches[0].turns)))
            alternatives = _numbered([[trunk] for trunk in _without_turns(trunks, grown)] + grown)
            groups, scored = self.source.scored(alternatives, by_turn=True)
        return Wave(
            groups=tuple(groups),
            seconds=dict(clock),
            errors=messages_of(alternatives, scored),
            facts={**facts_of(alternatives), **_facts(alternatives)},
        )


def forked(stage: Stage, trunks: Sequence[Episode], group_size: int, calls: Calls) -> list[list[Episode]]:
    """`group_size` alternatives of each trunk at its next turn, each with a copy of the environment where it forks."""
    branches = [
        [replace(trunk, index=i, turns=list(trunk.turns), facts={}, seconds=0.0) for i in range(group_size)]
        for trunk in trunks
    ]
    copying = [branch for members in branches for branch in members if isinstance(branch.env, Forks)]
    found = calls.together([partial(_fork, branch) for branch in copying], stage.settings.step_timeout)
    for branch, called in zip(copying, found, strict=True):
        branch.env = called.value
        if called.status != "ok":
            branch.fails("env_timeout" if called.status == "timeout" else "env_error", f"fork(): {called.message}")
    for branch in (branch for members in branches for branch in members):
        if branch.ending is None and not isinstance(branch.env, Forks | Evaluates):
            raise ValueError(
                f"the environment {type(branch.env).__name__} has neither fork() nor evaluate(): alternatives of a "
                "turn (collector.forks) need one of them"
            )
    return branches


def _fork(branch: Episode) -> Any:
    assert isinstance(branch.env, Forks)
    return branch.env.fork()


def answer(stage: Stage, branches: Sequence[Episode], calls: Calls) -> None:
    """Each alternative is answered by its own copy, or by the one environment without a trace."""
    steps = []
    for branch in branches:
        env = branch.env
        assert env is not None
        take = env.step if isinstance(env, Forks) or not isinstance(env, Evaluates) else env.evaluate
        steps.append(partial(take, stage.action(branch)))
    for branch, called in zip(branches, calls.together(steps, stage.settings.step_timeout), strict=True):
        observation = stage.answered(branch, called, "step")
        if observation is not None:
            stage.hears(branch, observation)


def chosen_of(branches: Sequence[Episode], continuation: Continuation, seed: int, step: int) -> Episode | None:
    """The alternative that goes on; None where it ends the episode, or none is left to go on with.

    Alternatives that were cut, or whose environment failed, are not gone on with while there are others.
    """
    able = [b for b in branches if b.turns and b.ending not in ("cut", "max_tokens", *FAILED_ENDINGS)]
    if not able:
        return None
    chosen = able[0]
    if continuation == "best":
        chosen = max(able, key=lambda b: (np.nan_to_num(b.turns[-1].reward, nan=-np.inf), -b.index))
    elif continuation == "random":
        key = stream_keys([(seed, step, chosen.prompt_id, len(chosen.turns))])[0]
        chosen = able[int(key % np.uint64(len(able)))]
    return chosen if chosen.ending is None else None


def _without_turns(trunks: Sequence[Episode], grown: Sequence[list[Episode]]) -> list[Episode]:
    """Trunks that failed as they began, or whose prompt left no room: each a group that trains nothing."""
    spoke = {branches[0].number for branches in grown}
    silent = [trunk for trunk in trunks if trunk.number not in spoke]
    for trunk in silent:
        trunk.ending = trunk.ending or "max_tokens"
    return silent


def _numbered(groups: Sequence[list[Episode]]) -> list[Episode]:
    """All of them, group by group, with the numbers that their groups have in the batch."""
    for number, members in enumerate(groups):
        for branch in members:
            branch.number = number
    return [branch for members in groups for branch in members]


def _facts(branches: Sequence[Episode]) -> Facts:
    """Answers of the environment; and per prompt the best reward of any turn."""
    best: dict[int, float] = {}
    for branch in branches:
        if branch.turns and branch.turns[-1].reward == branch.turns[-1].reward:
            best[branch.prompt_id] = max(best.get(branch.prompt_id, -np.inf), branch.turns[-1].reward)
    return {
        "forks/environment_calls": (float(sum(bool(branch.turns) for branch in branches)), 0.0),
        "forks/best_reward": (sum(best.values()), float(len(best))),
    }
