"""A run whose policy is a Ray actor, or several: started, listened to, and resumed after a death."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gspo.config import RunConfig
from gspo.dist.ranks import Ranks
from gspo.placement.cluster import connected, first_line, in_bundle, reserved
from gspo.placement.config import PlacementConfig
from gspo.placement.policies import Job, PlacedRun, PolicyDied, PolicyWorker, outcome, ranks_at
from gspo.placement.servers import Servers, kept_up
from gspo.samplers.key import server_key

LISTEN = 0.3
"""Seconds between two looks at what the run has said."""
LAST = 10.0
"""Seconds that ended processes may take to be gone, before others take their place."""


def refuse_ranks(ranks: Ranks, settings: PlacementConfig) -> None:
    """Raises ValueError for a run that torchrun has spread already."""
    if ranks.is_many:
        raise ValueError(
            f'placement.on = "{settings.on}" starts the ranks itself (placement.policies = {settings.policies}), and '
            f"torchrun started {ranks.size}: start the run without torchrun, or leave placement out"
        )


def start_placed(config: RunConfig, show: Callable[[str], None]) -> PlacedRun:
    """A new run with its parts where `config.placement` says. `show` takes text as the run prints it."""
    from gspo.training.run import new_folder

    config = replace(config, folder=str(new_folder(config).absolute()))
    return _placed(Job(home=os.getcwd(), folder=config.folder, config=config, key=server_key()), config, show)


def resume_placed(
    path: Path, placement: PlacementConfig, overrides: Sequence[tuple[str, Any]], show: Callable[[str], None]
) -> PlacedRun:
    """Go on with a run."""
    from gspo.training.run import config_of

    job = Job(home=os.getcwd(), folder=str(path.absolute()), overrides=tuple(overrides), key=server_key())
    return _placed(job, replace(config_of(path, overrides), placement=placement), show)


def _placed(job: Job, config: RunConfig, show: Callable[[str], None]) -> PlacedRun:
    from gspo.training.run import stop_on_signals

    settings = config.placement
    with (
        connected(settings) as ray,
        reserved(ray, settings) as group,
        stop_on_signals(lambda text: show(f"{text}\n")) as is_asked,
        kept_up(ray, config, group, job.home, show, is_asked) as servers,
    ):
        job, died = replace(job, servers=servers.urls), 0
        while True:
            try:
                return _attempt(ray, job, settings, group, is_asked, show, servers)
            except PolicyDied as error:
                died += 1
                job = _again(job)
                folder = Path(job.folder)
                how = f"gspo resume {folder}" if job.config is None else "start it again (there is no checkpoint yet)"
                if died > settings.restarts:
                    raise ValueError(
                        f"the policy's process ended {died} times ({error}); if the system killed it, "
                        f"it may lack memory: lower micro_batch_tokens. Go on: {how}"
                    ) from None
                show(f"the policy's process ended ({error}): again, {died} of {settings.restarts}\n")


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
    servers: Servers,
) -> PlacedRun:
    """The policy's processes, to the end of the run or to that of one of them."""
    kind = ray.remote(PolicyWorker)
    workers = [
        kind.options(
            num_cpus=settings.policy_cpus,
            num_gpus=settings.policy_gpus,
            max_concurrency=3,
            scheduling_strategy=in_bundle(group, settings.bundle("policy", rank)),
        ).remote()
        for rank in range(settings.policies)
    ]
    try:
        places = ray.get([worker.where.remote(settings) for worker in workers], timeout=settings.deadline)
        results = [worker.run.remote(job, rank) for worker, rank in zip(workers, ranks_at(places), strict=True)]
        is_told = False
        while True:
            ended, _ = ray.wait(results, num_returns=len(results), timeout=LISTEN)
            show(ray.get(workers[0].said.remote(), timeout=settings.deadline) + servers.said())
            done = outcome(ray, results, ended)
            if done is not None:
                return done
            if is_asked() and not is_told:
                ray.get(workers[0].stop.remote(), timeout=settings.deadline)
                is_told = True
    except ray.exceptions.RayActorError as error:
        raise PolicyDied(first_line(error)) from None
    except ray.exceptions.GetTimeoutError:
        raise ValueError(
            f"waited {settings.deadline:g} s (placement.deadline) for the policy's process to answer: it hangs, or its "
            f"machine is gone; go on with: gspo resume {job.folder}"
        ) from None
    finally:
        for worker in workers:
            ray.kill(worker)
        ray.wait([worker.pid.remote() for worker in workers], num_returns=len(workers), timeout=LAST)  # until it knows
