"""iGRPO: draft, keep the best draft in sight, refine; only refinements are trained.

iGRPO 2026, https://arxiv.org/abs/2602.09000 (full text read, no official code):

    stage 1: drafts d_1..d_N ~ pi_old(. | q), their rewards, d^ = argmax                       no gradient
    stage 2: q' = T(q, d^), refinements o_1..o_G ~ pi_old(. | q'), their rewards
    update:  the objective on the refinements, everything conditioned on q'; N + G is the plain group's size

It is a source of groups, so any objective and any collector stand above it. At inference the policy answers q alone.
Certainty: the two stages, the argmax and N + G are read in the paper. Not stated there, and options here: how ties
are broken, what becomes of drafts that are too long for q'. The template's words are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gspo.collectors.base import Facts, added
from gspo.collectors.source import GroupSource, Wave
from gspo.data import Row
from gspo.limits import at_least
from gspo.renderers import Prompt, Renderer
from gspo.samplers.streams import stream_keys
from gspo.tasks.base import Rows, permutation
from gspo.types import Group, Rollout

TEMPLATE = (
    "{prompt}\n\nAn earlier attempt at this, which may be right or wrong:\n{draft}\n\n"
    "Take from it what holds, do not repeat it, and give your own complete answer."
)


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """iGRPO's first stage. `group_size` counts drafts and refinements together."""

    number: int = 0
    """Drafts per prompt (N); the other `group_size` - N completions are refinements, and trained. 0 is off."""
    template: str = TEMPLATE
    """Makes the second prompt of {prompt} and {draft}; of messages, the last user message."""
    ties: Literal["first", "random"] = "first"
    """Which of equally good drafts is kept (the paper does not say)."""
    max_tokens: int = 0
    """Tokens of a draft in the second prompt; 0 leaves it whole."""
    too_long: Literal["tail", "head", "answer"] = "tail"
    """What is kept of a longer one (the paper does not say): its end, its beginning, or the end of what follows its
    thinking."""

    def __post_init__(self) -> None:
        at_least(self, "collector.drafts.", 0, "number", "max_tokens")
        if "{draft}" not in self.template:
            raise ValueError("collector.drafts.template has no {draft}")


@dataclass(frozen=True, kw_only=True)
class DraftThenRefine:
    """Groups of refinements. `source` makes single completions; its group size is the budget N + G."""

    source: GroupSource
    settings: DraftConfig

    @property
    def renderer(self) -> Renderer:
        return self.source.renderer

    @property
    def group_size(self) -> int:
        """Refinements per prompt (G)."""
        return self.source.group_size - self.settings.number

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return self.source.next_rows(cursor, count)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave:
        drafts = replace(self.source, group_size=self.settings.number).wave(rows, step)
        best = [best_draft(group, self.settings, self.source.seed, step) for group in drafts.groups]
        second = [
            (prompt_id, {**row, "prompt": second_prompt(row["prompt"], draft.text, self.settings, self.renderer)})
            for (prompt_id, row), draft in zip(rows, best, strict=True)
        ]
        refined = replace(self.source, group_size=self.group_size).wave(second, step, turn=1)
        return Wave(
            groups=refined.groups,
            seconds={name: drafts.seconds[name] + refined.seconds[name] for name in refined.seconds},
            errors=tuple(dict.fromkeys(drafts.errors + refined.errors)),
            facts=added((drafts.facts, refined.facts, _facts(drafts.groups, best))),
        )


def best_draft(group: Group, settings: DraftConfig, seed: int, step: int) -> Rollout:
    """The draft of highest reward; the first one where none could be scored."""
    scored = [rollout for rollout in group.rollouts if rollout.reward == rollout.reward]
    if not scored:
        return group.rollouts[0]
    highest = max(rollout.reward for rollout in scored)
    best = [rollout for rollout in scored if rollout.reward == highest]
    if settings.ties == "first":
        return best[0]
    return best[int(stream_keys([(seed, step, group.prompt_id, 1)])[0] % np.uint64(len(best)))]


def second_prompt(prompt: Prompt, draft: str, settings: DraftConfig, renderer: Renderer) -> Prompt:
    """q': the template with the prompt and the draft in their places, filled in once, so that braces are safe."""
    shown = _fitting(draft, settings, renderer)
    filled = lambda text: settings.template.replace("{draft}", "\0").replace("{prompt}", text).replace("\0", shown)  # noqa: E731
    if isinstance(prompt, str):
        return filled(prompt)
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=-1)
    if last < 0:
        raise ValueError("the prompt has no user message to put a draft into")
    return [{**m, "content": filled(m["content"])} if i == last else m for i, m in enumerate(prompt)]


def _fitting(draft: str, settings: DraftConfig, renderer: Renderer) -> str:
    limit = settings.max_tokens
    ids = renderer.encode(draft, special=False) if limit and draft else []
    if len(ids) <= limit or not limit:
        return draft
    if settings.too_long == "answer":
        ids = renderer.encode(draft.rpartition("</think>")[2].lstrip() or draft, special=False)
    return renderer.text(tuple(ids[:limit] if settings.too_long == "head" else ids[-limit:]))


def drafted(rows: Sequence[Row], settings: DraftConfig, renderer: Renderer, seed: int) -> Rows:
    """Supervised rows for a cold start: each as it is, then each behind a draft, which is another row's completion.

    Without such rows q' is like nothing that a model trained from scratch has seen.
    """
    order = permutation(seed, 2, len(rows))

    def row(i: int) -> Row:
        if i < len(rows):
            return rows[i]
        own = rows[i - len(rows)]
        other = own if i % 4 == 0 else rows[int(order[i - len(rows)])]
        return {**own, "prompt": second_prompt(own["prompt"], other["completion"], settings, renderer)}

    return Rows(range(2 * len(rows)), row)


def _facts(groups: Sequence[Group], best: Sequence[Rollout]) -> Facts:
    rewards = [r.reward for group in groups for r in group.rollouts if r.reward == r.reward]
    highest = [draft.reward for draft in best if draft.reward == draft.reward]
    return {
        "drafts/reward": (sum(rewards), float(len(rewards))),
        "drafts/best_reward": (sum(highest), float(len(highest))),
        "drafts/sampled": (float(sum(len(group.rollouts) for group in groups)), 0.0),
    }
