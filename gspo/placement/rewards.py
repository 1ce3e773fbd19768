"""Scoring in Ray actors. A reward that reads rows one by one is spread over all of them; one that reads a batch gets
every batch whole, always on the same actor: scores are those of `Rewards` in this process."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gspo.placement.cluster import ensure_connected, first_line, in_bundle, own_group
from gspo.placement.config import PlacementConfig
from gspo.rewards.base import RewardConfig, Scored, joined, side_by_side
from gspo.rewards.calling import Outcome
from gspo.rewards.scoring import MAX_ERRORS, Rewards, refuse_repeated
from gspo.samplers.base import SamplerLost


@dataclass(frozen=True, kw_only=True)
class About:
    """What is to be known of a reward without its function."""

    name: str
    weight: float
    takes_time: bool
    by_row: bool


class RewardActor:
    """All rewards of a run, each by itself, in a process of Ray's."""

    def __init__(self, rewards: Sequence[Any], home: str) -> None:
        self.rewards, self.home = rewards, home
        self.made: list[Rewards] = []

    def pid(self) -> int:
        return os.getpid()

    def about(self) -> list[About]:
        return [
            About(name=one.names[0], weight=float(one.weights[0]), takes_time=one.take_time, by_row=one.by_row)
            for one in self._made()
        ]

    def score(self, which: int, *wave: Any) -> Scored:
        return self._made()[which].score(*wave)

    def _made(self) -> list[Rewards]:
        """Here rather than at the start, so that what is wrong with a reward is an answer."""
        if not self.made:
            os.chdir(self.home)
            self.made = [Rewards([reward]) for reward in self.rewards]
        return self.made


class RayRewards:
    """What `Rewards` is, over Ray actors. Ray starts one that died again, and asks it again."""

    def __init__(
        self, rewards: Sequence[RewardConfig | Callable], given: dict[str, float], settings: PlacementConfig
    ) -> None:
        self._settings, self._given = settings, Rewards([], given) if given else None
        self._ray = ensure_connected(settings)
        group, kind = own_group(), self._ray.remote(RewardActor)
        self._actors = [
            kind.options(
                num_cpus=settings.reward_cpus,
                max_restarts=-1,
                max_task_retries=settings.restarts,
                scheduling_strategy=in_bundle(group, settings.bundle("reward", i)),
            ).remote(list(rewards), os.getcwd())
            for i in range(settings.reward_workers)
        ]
        try:
            self._about: list[About] = self._answer(0, self._actors[0].about.remote(), self._until())
            self.names: tuple[str, ...] = (*given, *(about.name for about in self._about))
            refuse_repeated(self.names)
        except ValueError:
            self.close()
            raise
        self.weights = np.array([*given.values(), *(about.weight for about in self._about)])

    @property
    def take_time(self) -> bool:
        """Whether any of them is more than a built-in that answers at once."""
        return any(about.takes_time for about in self._about)

    def pids(self) -> list[int]:
        """Of the processes, on their machines."""
        return [self._answer(i, actor.pid.remote(), self._until()) for i, actor in enumerate(self._actors)]

    def score(
        self,
        prompts: Sequence,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: dict[str, list],
        *given: Sequence[Outcome],
    ) -> Scored:
        """As `Rewards.score`."""
        until = self._until()
        asked = []
        for which, about in enumerate(self._about):
            for actor, rows in self._shares(which, about, len(prompts)):
                wave = (
                    prompts[rows],
                    completions[rows],
                    completion_ids[rows],
                    {n: c[rows] for n, c in columns.items()},
                )
                asked.append((which, actor, self._actors[actor].score.remote(which, *wave)))
        parts = (
            [] if self._given is None else [self._given.score(prompts, completions, completion_ids, columns, *given)]
        )
        for which in range(len(self._about)):
            found = [self._answer(actor, answer, until) for part, actor, answer in asked if part == which]
            parts.append(joined(found))
        scored = side_by_side(parts, self.weights)
        # The first of each message, whatever its prompt, as in one process.
        distinct = {error.rpartition("; prompt ")[0]: error for error in reversed(scored.errors)}
        return replace(scored, errors=[e for e in scored.errors if e in distinct.values()][:MAX_ERRORS])

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def _shares(self, which: int, about: About, count: int) -> list[tuple[int, slice]]:
        """(actor, rows) of one reward."""
        actors = len(self._actors)
        if not about.by_row or count < actors:
            return [(which % actors, slice(0, count))]
        ends = [count * i // actors for i in range(actors + 1)]
        return [(i, slice(ends[i], ends[i + 1])) for i in range(actors)]

    def _until(self) -> float:
        return time.monotonic() + self._settings.deadline

    def _answer(self, actor: int, answer: Any, until: float) -> Any:
        errors = self._ray.exceptions
        name = f"reward worker {actor} of {len(self._actors)}"
        try:
            return self._ray.get(answer, timeout=max(0.0, until - time.monotonic()))
        except errors.GetTimeoutError as error:
            raise SamplerLost(
                f"the policy (process {os.getpid()}) waited {self._settings.deadline:g} s (placement.deadline) for "
                f"scores from {name}: it hangs, or its machine is gone (see `ray status`)"
            ) from error
        except errors.RayActorError as error:
            raise SamplerLost(
                f"{name} ended {self._settings.restarts + 1} times in a row under the same completions "
                f"({first_line(error)}); if the system killed it, its rewards may need more memory than there is"
            ) from error
        except errors.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from None
            raise
