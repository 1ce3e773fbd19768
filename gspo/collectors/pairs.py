"""Batches of preference pairs found by a verifier: groups of two, rewards 1 and 0. Nothing is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from gspo.collectors.base import Collected
from gspo.data import rows_at
from gspo.renderers import Renderer
from gspo.types import Completion, Group, Rollout, Turn
from gspo.verifiers.pairs import KINDS, Pair


@dataclass(frozen=True, kw_only=True)
class PairCollector:
    """Epochs over `pairs`, counted from the phase's first step; the cursor into the prompts stays where it is."""

    pairs: Sequence[Pair]
    first_step: int
    prompts_per_step: int
    seed: int
    renderer: Renderer
    num_rewards: int = 1
    """Reward functions of the run, none of which is asked here."""

    def collect(self, cursor: int, step: int) -> Collected:
        count = self.prompts_per_step
        chosen = rows_at((step - self.first_step) * count, count, len(self.pairs), self.seed)
        groups = tuple(self._group(self.pairs[i], number) for number, i in enumerate(chosen))
        kinds = [self.pairs[i].kind for i in chosen]
        facts = {f"pairs/{kind}": (float(kinds.count(kind)), float(len(kinds))) for kind in KINDS}
        return Collected(groups=groups, cursor=cursor, seconds={}, prompts_drawn=0, facts=facts)

    def _group(self, pair: Pair, number: int) -> Group:
        rollouts = tuple(
            Rollout(
                group_id=number,
                index=index,
                turns=(
                    Turn(
                        prompt_ids=pair.prompt_ids,
                        completion=Completion(
                            ids=ids, logprobs=(0.0,) * len(ids), policy_version=0, finish_reason="stop"
                        ),
                    ),
                ),
                text=self.renderer.text(ids),
                rewards=(nan,) * self.num_rewards,
                statuses=("none",) * self.num_rewards,
                reward=1.0 - index,
            )
            for index, ids in enumerate((pair.chosen_ids, pair.rejected_ids))
        )
        return Group(
            prompt_id=pair.prompt_id,
            prompt_ids=pair.prompt_ids,
            prompt_text=self.renderer.prompt_text(pair.prompt_ids),
            rollouts=rollouts,
        )
