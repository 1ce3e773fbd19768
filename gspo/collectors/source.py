"""Prompts from the data, completions from a sampler, scores from rewards: groups, a wave at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gspo.data import Row, rows_at
from gspo.renderers import Renderer
from gspo.rewards import Rewards, check_failures
from gspo.samplers.base import Sampler, SampleRequest
from gspo.sampling import Sampling
from gspo.types import Completion, Group, Rollout


@dataclass(frozen=True, kw_only=True)
class Wave:
    """What one call of `GroupSource.wave` gives."""

    groups: tuple[Group, ...]
    seconds: dict[str, float]
    errors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """Samples and scores `group_size` completions for given rows."""

    rows: Sequence[Row]
    renderer: Renderer
    sampler: Sampler
    rewards: Rewards
    sampling: Sampling
    group_size: int
    seed: int
    failure_limit: float = 1.0

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        """(prompt number, row) of the next prompts; the numbers count prompts since the start of the run."""
        indices = rows_at(cursor, count, len(self.rows), self.seed)
        return [(cursor + i, self.rows[index]) for i, index in enumerate(indices)]

    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave:
        """Groups for (prompt id, row) pairs, sampled together and scored together."""
        started = time.perf_counter()
        prompts = [self.renderer.prompt_ids(row["prompt"]) for _, row in rows]
        requests = [
            SampleRequest(
                prompt_ids=ids,
                n=self.group_size,
                seed=self.seed,
                step=step,
                prompt_id=prompt_id,
                sampling=self.sampling,
            )
            for ids, (prompt_id, _) in zip(prompts, rows, strict=True)
        ]
        completions = self.sampler.sample(requests)
        sampled = time.perf_counter()
        groups, errors = self._score(rows, prompts, completions)
        return Wave(
            groups=groups,
            seconds={"sample": sampled - started, "reward": time.perf_counter() - sampled},
            errors=errors,
        )

    def _score(
        self,
        rows: Sequence[tuple[int, Row]],
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[Sequence[Completion]],
    ) -> tuple[tuple[Group, ...], tuple[str, ...]]:
        flat = [(row, completion) for (_, row), group in zip(rows, completions, strict=True) for completion in group]
        texts = [self.renderer.text(completion.ids) for _, completion in flat]
        scored = self.rewards.score(
            [row["prompt"] for row, _ in flat],
            [self.renderer.answer(text) for text in texts],
            [list(completion.ids) for _, completion in flat],
            columns_of([row for row, _ in flat]),
        )
        check_failures(scored, self.failure_limit)
        rollouts = [
            Rollout(
                group_id=i // self.group_size,
                index=i % self.group_size,
                completion=completion,
                text=text,
                rewards=tuple(scored.values[i].tolist()),
                statuses=tuple(scored.statuses[i]),
                reward=float(scored.total[i]),
            )
            for i, ((_, completion), text) in enumerate(zip(flat, texts, strict=True))
        ]
        size = self.group_size
        groups = tuple(
            Group(
                prompt_id=prompt_id,
                prompt_ids=ids,
                prompt_text=self.renderer.prompt_text(ids),
                rollouts=tuple(rollouts[g * size : (g + 1) * size]),
                columns={key: value for key, value in row.items() if key != "prompt"},
            )
            for g, ((prompt_id, row), ids) in enumerate(zip(rows, prompts, strict=True))
        )
        return groups, tuple(scored.errors)


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The rows' columns other than the prompt, as lists; a row without one gets None."""
    names = sorted({key for row in rows for key in row} - {"prompt"})
    return {name: [row.get(name) for row in rows] for name in names}
