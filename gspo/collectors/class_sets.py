"""Images in, scored sets of classes out: what `GroupSource` is for completions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo.collectors.source import Wave, next_rows
from gspo.data import Row
from gspo.renderers.classes import ClassRenderer
from gspo.rewards import Rewards
from gspo.rewards.classes import class_rewards
from gspo.samplers.base import Sampler, SampleRequest
from gspo.sampling import Sampling
from gspo.types import Completion, Group, Rollout, Turn, UnitRewards

IMAGE, LABELS, ANSWER = "image", "labels", "answer"
"""Columns: the image; of dense rows the class number of every pixel in reading order; else the class's name."""


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """One rollout per image, whose units are the classes of its questions; each question is a group of its own."""

    rows: Sequence[Row]
    renderer: ClassRenderer
    sampler: Sampler
    rewards: Rewards
    sampling: Sampling
    group_size: int
    """Not read: a group is the set of classes."""
    seed: int
    accuracy: float
    uniformity: float
    """Weights of the two rewards."""
    prepare: Callable[[Any], np.ndarray]
    """From a row's image to an array [K,H,W]."""
    failure_limit: float = 1.0
    overlap_rewards: bool = False
    dropped: frozenset[int] = frozenset()

    def next_rows(self, cursor: int, count: int) -> list[tuple[int, Row]]:
        return next_rows(self.rows, self.seed, cursor, count, self.dropped)

    def wave(self, rows: Sequence[tuple[int, Row]], step: int, turn: int = 0) -> Wave:
        """Groups for (prompt id, row) pairs."""
        started = time.perf_counter()
        images = [self.prepare(row[IMAGE]) for _, row in rows]
        requests = [
            SampleRequest(
                prompt_ids=(), n=1, seed=self.seed, step=step, prompt_id=number, sampling=self.sampling, inputs=image
            )
            for image, (number, _) in zip(images, rows, strict=True)
        ]
        drawn = self.sampler.sample(requests)
        sampled = time.perf_counter()
        groups = tuple(
            self._group(place, number, row, image, completion)
            for place, ((number, row), image, (completion,)) in enumerate(zip(rows, images, drawn, strict=True))
        )
        return Wave(
            groups=groups,
            seconds={"sample": sampled - started, "reward": time.perf_counter() - sampled},
            errors=(),
        )

    def _group(self, place: int, number: int, row: Row, image: np.ndarray, completion: Completion) -> Group:
        classes = len(self.renderer.classes)
        probabilities = np.exp(np.array(completion.logprobs)).reshape(-1, classes)
        labels = self.labels(row, len(probabilities))
        values, total = class_rewards(probabilities, labels, accuracy=self.accuracy, uniformity=self.uniformity)
        # What a draw from the old policy would earn, on average.
        expected = lambda rewards: float((probabilities.ravel() * rewards).sum() / len(labels))  # noqa: E731
        rollout = Rollout(
            group_id=place,
            index=0,
            turns=(Turn(prompt_ids=(), completion=completion),),
            text=self.renderer.chosen(probabilities),
            rewards=tuple(expected(column) for column in values.T),
            statuses=("ok",) * values.shape[1],
            reward=expected(total),
            unit_rewards=UnitRewards(values=values, total=total, set_size=classes),
        )
        return Group(
            prompt_id=number,
            prompt_ids=(),
            prompt_text=str(row["prompt"]),
            rollouts=(rollout,),
            columns={key: value for key, value in row.items() if key not in ("prompt", IMAGE)},
            inputs=image,
        )

    def labels(self, row: Row, questions: int) -> np.ndarray:
        """[Q] number of the right class of each question."""
        if LABELS in row:
            labels = np.asarray(row[LABELS]).ravel()
            if len(labels) != questions:
                raise ValueError(f"column {LABELS!r} has {len(labels)} classes for {questions} pixels")
            return labels
        if questions > 1:
            raise ValueError(f"a dense head asks about every pixel: the data needs a column {LABELS!r}")
        return np.array([self.renderer.number(str(row[ANSWER]))])
