"""Dynamic sampling (DAPO, 2503.14476): groups whose rewards have no spread are replaced by new prompts.

A wave of `prompts_per_step` prompts is drawn until that many groups with spread are there, at most `max_rounds`
times; after that the batch is filled up with groups without spread, which have advantage 0. Prompts of a last wave
that were not needed are consumed too: the cursor stands behind the last prompt drawn.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from gspo.collectors.base import Collected, Facts, added
from gspo.collectors.source import Source
from gspo.types import Group


@dataclass(frozen=True, kw_only=True)
class Refill:
    source: Source
    prompts_per_step: int
    max_rounds: int

    def collect(self, cursor: int, step: int) -> Collected:
        mixed: list[Group] = []
        flat: list[Group] = []
        seconds: Counter[str] = Counter()
        errors: list[str] = []
        facts: Facts = {}
        rounds = 0
        while len(mixed) < self.prompts_per_step and rounds < self.max_rounds:
            rows = self.source.next_rows(cursor, self.prompts_per_step)
            wave = self.source.wave(rows, step)
            cursor = rows[-1][0] + 1
            rounds += 1
            for group in wave.groups:
                (mixed if has_spread(group) else flat).append(group)
            seconds.update(wave.seconds)
            errors += wave.errors
            facts = added((facts, wave.facts))
        chosen = (mixed + flat)[: self.prompts_per_step]
        return Collected(
            groups=tuple(_numbered(group, i) for i, group in enumerate(chosen)),
            cursor=cursor,
            seconds=dict(seconds),
            rounds=rounds,
            prompts_drawn=rounds * self.prompts_per_step,
            errors=tuple(errors),
            facts=facts,
        )


def has_spread(group: Group) -> bool:
    """Whether what competes in a group has different rewards: its scored rollouts, or the units of a set of classes."""
    sets = [rollout.unit_rewards for rollout in group.rollouts if rollout.unit_rewards is not None]
    if sets:
        return any(bool(np.ptp(rewards.total.reshape(-1, rewards.set_size), axis=1).any()) for rewards in sets)
    return len({rollout.reward for rollout in group.rollouts if rollout.reward == rollout.reward}) > 1


def _numbered(group: Group, group_id: int) -> Group:
    return replace(group, rollouts=tuple(replace(rollout, group_id=group_id) for rollout in group.rollouts))
