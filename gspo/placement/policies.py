"""The policy's processes in Ray: what each of them does, where the ranks among them meet, and how they end."""

import os
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gspo.config import RunConfig
from gspo.dist.ranks import ALONE, PATIENCE, Ranks, Team
from gspo.placement.cluster import Where, first_line, here
from gspo.placement.config import PlacementConfig
from gspo.samplers.key import hold_key


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the policy's processes are to do, in folders that they share with who asks."""

    home: str
    """Working folder: where relative paths in the settings begin."""
    folder: str
    config: RunConfig | None = None
    """Of a new run; None resumes the one in `folder`."""
    overrides: tuple[tuple[str, Any], ...] = ()
    servers: tuple[str, ...] = ()
    """Addresses of the servers that Ray keeps for the sampler."""
    key: str = field(default="", repr=False)
    """What servers ask for, as of `GSPO_SERVER_KEY` where the run was started."""


@dataclass(frozen=True, kw_only=True)
class PlacedRun:
    """What is left of a run whose model lived elsewhere."""

    folder: Path
    summary: dict[str, Any]
    is_finished: bool


class RankLost(Exception):
    """A rank does not hear from another one. Which of them is gone, and why, others know better."""


class PolicyDied(Exception):
    """A process of the policy has ended; what it says is which, and why."""


class PolicyWorker:
    """A process that trains. `run` takes the whole run; `said` and `stop` are answered meanwhile."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = threading.Event()

    def pid(self) -> int:
        return os.getpid()

    def where(self, settings: PlacementConfig) -> Where:
        return here(settings)

    def said(self) -> str:
        """What it printed since the last time."""
        found = []
        while not self._said.empty():
            found.append(self._said.get())
        return "".join(found)

    def stop(self) -> None:
        """Save and end after this step, and all other ranks with it."""
        self._stop.set()

    def run(self, job: Job, ranks: Ranks) -> PlacedRun:
        """Raises ValueError or OSError in one line, and `RankLost`."""
        from gspo.dist.launch import is_of_connection, line_of

        try:
            done = self._run(job, ranks)
        except Exception as error:
            if not isinstance(ranks, Team):
                raise
            if is_of_connection(error):
                raise RankLost(line_of(ranks, error)) from None
            if isinstance(error, ValueError | OSError):
                raise
            raise ValueError(line_of(ranks, error)) from None
        if isinstance(ranks, Team):
            ranks.close()
        return done

    def _run(self, job: Job, ranks: Ranks) -> PlacedRun:
        from transformers.utils import logging

        from gspo.training.parts import Given
        from gspo.training.run import console_of, resume, start

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        if not Path(job.home).is_dir():
            raise ValueError(
                f"the folder {job.home} is not there for the policy's process: the run needs a shared disk"
            )
        os.chdir(job.home)
        hold_key(job.key)
        given = Given(ranks=ranks, servers=job.servers, is_asked_to_stop=self._stop.is_set)
        with redirect_stdout(_Lines(self._said)):  # type: ignore[type-var]
            if job.config is None:
                done = resume(Path(job.folder), job.overrides, given, plain=True)
            else:
                done = start(job.config, given, console_of(job.config, ranks, plain=True))
        return PlacedRun(folder=done.folder, summary=done.summary, is_finished=done.is_finished)


class _Lines:
    """A text file whose lines go into a queue."""

    encoding = "utf-8"

    def __init__(self, said: "queue.SimpleQueue[str]") -> None:
        self._said = said

    def write(self, text: str) -> int:
        self._said.put(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def ranks_at(places: Sequence[Where]) -> list[Ranks]:
    """The ranks of processes at these places: they meet at the first one. A process alone is no rank."""
    if len(places) == 1:
        return [ALONE]
    meeting = f"tcp://{places[0].address}:{places[0].port}"
    on_node, before = Counter(place.node for place in places), Counter[str]()
    found: list[Ranks] = []
    for rank, place in enumerate(places):
        found.append(
            Team(rank, len(places), before[place.node], on_node[place.node], meeting=meeting, sees_own_gpu=True)
        )
        before[place.node] += 1
    return found


def outcome(ray: Any, results: Sequence[Any], ended: Sequence[Any]) -> PlacedRun | None:
    """What rank 0 returned, once all of `results` have ended; None while they go on.

    Raises `PolicyDied` where a process is gone, and ValueError or OSError for what was wrong in one of them. Processes
    that are left may wait for the one that failed; they get a moment to say whether it was them.
    """
    found, wrong = _heard(ray, results, ended)
    if not wrong:
        return found[0] if len(found) == len(results) else None
    later, _ = ray.wait(list(results), num_returns=len(results), timeout=PATIENCE)
    _, wrong = _heard(ray, results, later)
    for rank, error in wrong.items():
        if isinstance(error, ray.exceptions.RayActorError):
            raise PolicyDied(_of_rank(rank, len(results), first_line(error)))
    for error in wrong.values():
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from None
        if not isinstance(error.cause, RankLost):
            raise error
    raise PolicyDied(first_line(next(iter(wrong.values())).cause))


def _heard(ray: Any, results: Sequence[Any], ended: Sequence[Any]) -> tuple[dict[int, PlacedRun], dict[int, Any]]:
    """By rank: what was returned, and what was raised."""
    found: dict[int, PlacedRun] = {}
    wrong: dict[int, Any] = {}
    for rank, result in enumerate(results):
        if result not in ended:
            continue
        try:
            found[rank] = ray.get(result)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            wrong[rank] = error
    return found, wrong


def _of_rank(rank: int, size: int, said: str) -> str:
    return f"rank {rank} of {size}: {said}" if size > 1 else said
