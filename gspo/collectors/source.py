"""Prompts from the data, completions from a sampler, scores from rewards: groups, a wave at a time."""

import time
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from gspo.collectors.base import Facts
from gspo.collectors.meanwhile import Meanwhile
from gspo.data import Row, rows_at
from gspo.renderers import Renderer
from gspo.renderers.images import ImageRenderer
from gspo.rewards import Rewards, Scored, check_failures, joined
from gspo.samplers.base import Sampler, SampleRequest, SamplesEach
from gspo.sampling import Sampling
from gspo.types import Completion, Group, Rollout, Turn


@dataclass(frozen=True, kw_only=True)
class Wave:
    """What one call of `GroupSource.wave` gives."""

    groups: tuple[Group, ...]
    seconds: dict[str, float]
    errors: tuple[str, ...]
    facts: Facts = field(default_factory=dict)


class Source(Protocol):
    """Makes scored groups of given rows: of single completions, or of whole episodes with an environment."""

    renderer: Renderer
    group_size: int

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]: ...
    def wave(self, rows: Sequence[tuple[int, Row]], step: int) -> Wave: ...


def next_rows(
    rows: Sequence[Row], seed: int, cursor: int, count: int, dropped: Set[int] = frozenset()
) -> list[tuple[int, Row]]:
    """(prompt number, row) of the next prompts; the numbers count prompts since the start of the run.

    Rows in `dropped` are passed over, so that numbers may leave gaps.
    """
    if not dropped:
        return [(cursor + i, rows[index]) for i, index in enumerate(rows_at(cursor, count, len(rows), seed))]
    if len(dropped) >= len(rows):
        raise ValueError(f"all {len(rows)} prompts are solved and left out (drop_solved): there is nothing to draw")
    found: list[tuple[int, Row]] = []
    while len(found) < count:
        drawn = enumerate(rows_at(cursor, count, len(rows), seed), start=cursor)
        found += [(number, rows[index]) for number, index in drawn if index not in dropped]
        cursor += count
    return found[:count]


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """Samples and scores `group_size` completions for given rows."""

    rows: Sequence[Row]
    renderer: Renderer | ImageRenderer
    sampler: Sampler
    rewards: Rewards
    sampling: Sampling
    group_size: int
    seed: int
    failure_limit: float = 1.0
    overlap_rewards: bool = False
    """Score groups that have ended while others are being sampled, where the rewards take time."""
    dropped: frozenset[int] = frozenset()
    """Rows that are not drawn."""

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return next_rows(self.rows, self.seed, cursor, count, self.dropped)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int, turn: int = 0) -> Wave:
        """Groups for (prompt id, row) pairs, sampled together; scored together too, or as they end.

        Completions of another `turn` are drawn from random streams of their own.
        """
        started = time.perf_counter()
        read = [self.renderer.read(row) for _, row in rows]
        prompts = [ids for ids, _ in read]
        requests = [
            SampleRequest(
                prompt_ids=ids,
                n=self.group_size,
                seed=self.seed,
                step=step,
                prompt_id=prompt_id,
                sampling=self.sampling,
                turn=turn,
                inputs=inputs,
            )
            for (ids, inputs), (prompt_id, _) in zip(read, rows, strict=True)
        ]
        drawn: dict[int, list[Completion]] = {}
        batches: list[Scored] = []
        sampled = started

        def arriving(each: Iterable[tuple[int, list[Completion]]]) -> Iterator[int]:
            nonlocal sampled
            for number, completions in each:
                drawn[number] = completions
                yield number
            sampled = time.perf_counter()

        def score(numbers: list[int]) -> list[Group]:
            groups, scored = self._score([(n, *rows[n], prompts[n], drawn[n]) for n in numbers])
            batches.append(scored)
            return [replace(group, inputs=read[n][1]) for group, n in zip(groups, numbers, strict=True)]

        if self.overlap_rewards and self.rewards.take_time and isinstance(self.sampler, SamplesEach):
            done = Meanwhile(score).over(arriving(self.sampler.sample_each(requests)))
            groups = tuple(done[number] for number in range(len(rows)))
        else:
            groups = tuple(score(list(arriving(enumerate(self.sampler.sample(requests))))))
        together = joined(batches)
        check_failures(together, self.failure_limit)
        return Wave(
            groups=groups,
            seconds={"sample": sampled - started, "reward": time.perf_counter() - sampled},
            errors=tuple(together.errors),
        )

    def _score(
        self, ended: Sequence[tuple[int, int, Row, tuple[int, ...], list[Completion]]]
    ) -> tuple[list[Group], Scored]:
        """Groups of (number in the wave, prompt id, row, prompt ids, completions)."""
        flat = [(number, index, row, ids, c) for number, _, row, ids, group in ended for index, c in enumerate(group)]
        texts = [self.renderer.ended_text(completion.ids) for *_, completion in flat]
        columns = columns_of([row for _, _, row, *_ in flat])
        columns |= self.renderer.shown([completion.ids for *_, completion in flat])
        scored = self.rewards.score(
            [row["prompt"] for _, _, row, *_ in flat],
            [self.renderer.answer(text) for text in texts],
            [list(completion.ids) for *_, completion in flat],
            columns,
        )
        rollouts = iter(
            Rollout(
                group_id=number,
                index=index,
                turns=(Turn(prompt_ids=ids, completion=completion),),
                text=text,
                ending="cut" if completion.finish_reason == "length" else "done",
                rewards=tuple(scored.values[i].tolist()),
                statuses=tuple(scored.statuses[i]),
                reward=float(scored.total[i]),
            )
            for i, ((number, index, _, ids, completion), text) in enumerate(zip(flat, texts, strict=True))
        )
        groups = [
            Group(
                prompt_id=prompt_id,
                prompt_ids=ids,
                prompt_text=self.renderer.prompt_text(ids),
                rollouts=tuple(islice(rollouts, len(completions))),
                columns={key: value for key, value in row.items() if key != "prompt"},
            )
            for _, prompt_id, row, ids, completions in ended
        ]
        return groups, scored


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The rows' columns other than the prompt, as lists; a row without one gets None."""
    names = sorted({key for row in rows for key in row} - {"prompt"})
    return {name: [row.get(name) for row in rows] for name in names}
