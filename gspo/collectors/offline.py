"""Groups of completions that stand in the data: preference pairs, or completions with scores. Nothing is sampled.

| columns | a group is |
|---|---|
| `prompt`, `chosen`, `rejected` (TRL's preference columns; conversations too) | two completions, rewards 1 and 0 |
| `prompt`, `completions`, `scores` | all of them, rewards as given |

The completions are closed by the model's end token. Whoever wrote them, their log-probs are not known: objectives that
divide by old ones (REBEL, AGRO) get those of the policy at the beginning of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gspo.collectors.source import Wave, next_rows
from gspo.data import Row
from gspo.renderers import Renderer
from gspo.types import Completion, Group, Rollout, Turn

PAIR, SCORED = ("chosen", "rejected"), ("completions", "scores")
SCORE = "score"
"""Name of the reward that stands in the data."""


def is_offline(row: Row) -> bool:
    """Whether a row brings completions to learn from."""
    return set(PAIR) <= set(row) or set(SCORED) <= set(row)


@dataclass(frozen=True, kw_only=True)
class OfflineSource:
    """Groups as the rows have them."""

    rows: Sequence[Row]
    renderer: Renderer
    seed: int
    group_size: int = 2

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return next_rows(self.rows, self.seed, cursor, count)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave:
        groups = [group_of(row, prompt_id, number, self.renderer) for number, (prompt_id, row) in enumerate(rows)]
        return Wave(groups=tuple(groups), seconds={}, errors=())


def group_of(row: Row, prompt_id: int, number: int, renderer: Renderer) -> Group:
    """Raises ValueError for a row that is no group, with what is wrong in it."""
    prompt_ids, inputs = renderer.read(row)
    rollouts = []
    for index, (content, score) in enumerate(completions_of(row)):
        text = _text(content)
        ids = renderer.completion_ids(text)
        said = Completion(ids=ids, logprobs=(0.0,) * len(ids), policy_version=0, finish_reason="stop")
        rollouts.append(
            Rollout(
                group_id=number,
                index=index,
                turns=(Turn(prompt_ids=prompt_ids, completion=said),),
                text=text,
                rewards=(score,),
                statuses=("ok",),
                reward=score,
            )
        )
    return Group(
        prompt_id=prompt_id,
        prompt_ids=prompt_ids,
        prompt_text=renderer.prompt_text(prompt_ids),
        rollouts=tuple(rollouts),
        columns={key: value for key, value in row.items() if key not in ("prompt", *PAIR, *SCORED)},
        inputs=inputs,
    )


def completions_of(row: Row) -> list[tuple[Any, float]]:
    """(completion, score) of a row."""
    if set(PAIR) <= set(row):
        return [(row["chosen"], 1.0), (row["rejected"], 0.0)]
    completions, scores = row["completions"], row["scores"]
    if len(completions) != len(scores) or len(completions) < 2:
        raise ValueError(
            f"prompt {str(row['prompt'])[:60]!r} has {len(completions)} completions and {len(scores)} scores; there "
            "must be as many of each, and at least two"
        )
    return [(completion, float(score)) for completion, score in zip(completions, scores, strict=True)]


def _text(content: Any) -> str:
    """Of one assistant message, or of bare text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and len(content) == 1 and content[0].get("role") == "assistant":
        return content[0]["content"]
    raise ValueError(
        f"a completion is {content!r:.80}; it must be text or one assistant message (conversations of several turns "
        "are not read here)"
    )


def split_prompt(row: Row) -> Row:
    """TRL's implicit prompt: what two conversations begin with in common becomes the prompt's messages."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError(
            "chosen and rejected are texts without a prompt column; give the prompt as a column of its own"
        )
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise ValueError("chosen and rejected have no message in common: there is no prompt")
    return {**row, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
