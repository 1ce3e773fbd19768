"""A run whose policy is a Ray actor: started, listened to, and resumed after its death."""

import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gspo.config import RunConfig
from gspo.dist.ranks import Ranks
from gspo.placement.cluster import connected, first_line, in_bundle, reserved
from gspo.placement.config import PlacementConfig

LISTEN = 0.3
"""Seconds between two looks at what the run has said."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the policy's process is to do, in folders that it shares with who asks."""

    home: str
    """Working folder: where relative paths in the settings begin."""
    folder: str
    config: RunConfig | None = None
    """Of a new run; None resumes the one in `folder`."""
    overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlacedRun:
    """What is left of a run whose model lived elsewhere."""

    folder: Path
    summary: dict[str, Any]
    is_finished: bool


class PolicyWorker:
    """The process that trains. `run` takes the whole run; `said` and `stop` are answered meanwhile."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = threading.Event()

    def pid(self) -> int:
        return os.getpid()

    def said(self) -> str:
        """What it printed since the last time."""
        found = []
        while not self._said.empty():
            found.append(self._said.get())
        return "".join(found)

    def stop(self) -> None:
        """Save and end after this step."""
        self._stop.set()

    def run(self, job: Job) -> PlacedRun:
        from transformers.utils import logging

        from gspo.sinks import Console
        from gspo.training.parts import Given
        from gspo.training.run import resume, start

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        if not Path(job.home).is_dir():
            raise ValueError(
                f"the folder {job.home} is not there for the policy's process: the run needs a shared disk"
            )
        os.chdir(job.home)
        given = Given(is_asked_to_stop=self._stop.is_set)
        with redirect_stdout(_Lines(self._said)):  # type: ignore[type-var]
            if job.config is None:
                done = resume(Path(job.folder), job.overrides, given, plain=True)
            else:
                done = start(job.config, given, Console(job.config.steps, title=job.config.name, plain=True))
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


def refuse_ranks(ranks: Ranks, settings: PlacementConfig) -> None:
    """Raises ValueError for a run that torchrun has spread already."""
    if ranks.is_many:
        raise ValueError(
            f'placement.on = "{settings.on}" has one policy process, and torchrun started {ranks.size}: start the run '
            "without torchrun, or leave placement out"
        )


def start_placed(config: RunConfig, show: Callable[[str], None]) -> PlacedRun:
    """A new run with its parts where `config.placement` says. `show` takes text as the run prints it."""
    from gspo.training.run import new_folder

    config = replace(config, folder=str(new_folder(config).absolute()))
    return _placed(Job(home=os.getcwd(), folder=config.folder, config=config), config.placement, show)


def resume_placed(
    path: Path, placement: PlacementConfig, overrides: Sequence[tuple[str, Any]], show: Callable[[str], None]
) -> PlacedRun:
    """Go on with a run."""
    job = Job(home=os.getcwd(), folder=str(path.absolute()), overrides=tuple(overrides))
    return _placed(job, placement, show)


def _placed(job: Job, settings: PlacementConfig, show: Callable[[str], None]) -> PlacedRun:
    from gspo.training.run import stop_on_signals

    with (
        connected(settings) as ray,
        reserved(ray, settings) as group,
        stop_on_signals(lambda text: show(f"{text}\n")) as is_asked,
    ):
        died = 0
        while True:
            try:
                return _attempt(ray, job, settings, group, is_asked, show)
            except ray.exceptions.RayActorError as error:
                died += 1
                job = _again(job)
                folder = Path(job.folder)
                how = f"gspo resume {folder}" if job.config is None else "start it again (there is no checkpoint yet)"
                if died > settings.restarts:
                    raise ValueError(
                        f"the policy's process ended {died} times ({first_line(error)}); if the system killed it, "
                        f"it may lack memory: lower micro_batch_tokens. Go on: {how}"
                    ) from None
                show(f"the policy's process ended ({first_line(error)}): again, {died} of {settings.restarts}\n")


def _again(job: Job) -> Job:
    """The job of who takes over: the newest checkpoint, or everything where there is none yet."""
    from gspo.training.folder import RunFolder
    from gspo.training.state import checkpoints

    if checkpoints(RunFolder(Path(job.folder)).checkpoints):
        return replace(job, config=None)
    if job.config is not None:
        shutil.rmtree(job.folder, ignore_errors=True)
    return job


def _attempt(
    ray: Any,
    job: Job,
    settings: PlacementConfig,
    group: Any,
    is_asked: Callable[[], bool],
    show: Callable[[str], None],
) -> PlacedRun:
    """One policy's process, to the end of the run or to its own."""
    worker = (
        ray.remote(PolicyWorker)
        .options(
            num_cpus=settings.policy_cpus,
            num_gpus=settings.policy_gpus,
            max_concurrency=3,
            scheduling_strategy=in_bundle(group, 0),
        )
        .remote()
    )
    try:
        ray.get(worker.pid.remote(), timeout=settings.deadline)
        result, is_told = worker.run.remote(job), False
        while True:
            done, _ = ray.wait([result], timeout=LISTEN)
            show(ray.get(worker.said.remote(), timeout=settings.deadline))
            if done:
                return ray.get(result)
            if is_asked() and not is_told:
                ray.get(worker.stop.remote(), timeout=settings.deadline)
                is_told = True
    except ray.exceptions.GetTimeoutError:
        raise ValueError(
            f"waited {settings.deadline:g} s (placement.deadline) for the policy's process to answer: it hangs, or its "
            f"machine is gone; go on with: gspo resume {job.folder}"
        ) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from None
        raise
    finally:
        ray.kill(worker)
