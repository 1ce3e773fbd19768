"""One of the processes of a test: python rank.py RANK SIZE FOLDER JOB ...; rank 0 writes FOLDER/results.pt.

A job is a case or a check of `spread.py`; or `run:NAME`, a small run in FOLDER/NAME; or `resume:NAME`, of one that is
there. `stopped:NAME` ends after three steps, `lost:NAME` loses its sampler in the batch of step 3, and both go on;
`http:NAME` has an imitated vLLM server.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from fake_servers import FakeVLLM, serving
from runs import settings
from small_runs import RUNS
from spread import CASES, CHECKS, FOUR

from gspo.dist.config import RanksConfig
from gspo.dist.policy import RankedPolicy
from gspo.dist.ranks import Ranks, Team
from gspo.models import save_model, tiny_model
from gspo.policies.network import Network
from gspo.samplers import connect
from gspo.samplers.base import SampleRequest, SamplerLost
from gspo.samplers.in_process import InProcess
from gspo.training.parts import Given
from gspo.training.run import console_of, resume, start
from gspo.types import Completion


class Served:
    """Stands for a server: it samples from a copy of the weights that it was handed last."""

    scores = "exact"

    def __init__(self, asked: object, *, stop_ids: list[int], rows: int, **others: object) -> None:
        self.stop_ids, self.rows = stop_ids, rows

    def sync_weights(self, policy: RankedPolicy, version: int) -> None:
        self.snapshot(policy, version)()

    def snapshot(self, policy: RankedPolicy, version: int) -> Callable[[], None]:
        inner = InProcess(Network(copy.deepcopy(policy.network.model).eval()), self.stop_ids, 0, self.rows)
        inner.sync_weights(policy, version)
        return partial(setattr, self, "inner", inner)

    def sample(self, requests: list[SampleRequest]) -> list[list[Completion]]:
        return self.inner.sample(requests)


class Lost(Served):
    """It ends in the third batch."""

    def sample(self, requests: list[SampleRequest]) -> list[list[Completion]]:
        if requests[0].step == 2:
            raise SamplerLost("gone")
        return super().sample(requests)


def small_run(folder: Path, name: str, ranks: Ranks, *more: tuple, **given: object) -> bool:
    """Whether it came to its end."""
    config = settings(folder / name, *RUNS[name], ("device", "cpu"), *more)
    return start(config, Given(ranks=ranks, **given), console_of(config, ranks, True)).is_finished


def stopped(folder: Path, name: str, ranks: Ranks) -> tuple[bool, bool]:
    """Whether it was finished when it was asked to stop, and after it was resumed."""
    lines = folder / name / "metrics.jsonl"
    has_three = lambda: ranks.is_first and lines.exists() and lines.read_text().count("\n") > 3  # noqa: E731
    was = small_run(folder, name, ranks, is_asked_to_stop=has_three)
    return was, resume(folder / name, given=Given(ranks=ranks), plain=True).is_finished


def lost(folder: Path, name: str, ranks: Ranks) -> tuple[list[str], list[str], bool]:
    """What each rank says, the checkpoints then, and whether it was finished after it was resumed."""
    connect.connect = Lost
    try:
        small_run(folder, name, ranks)
    except ValueError as error:
        said = str(error)
    saved = sorted(path.name for path in (folder / name / "checkpoints").iterdir())
    said_by = ranks.everyone(said)
    connect.connect = Served
    return said_by, saved, resume(folder / name, given=Given(ranks=ranks), plain=True).is_finished


def over_http(folder: Path, name: str, ranks: Ranks) -> bool:
    connect.connect = CONNECT
    loaded = tiny_model(settings(folder).tiny, seed=5)
    save_model(loaded.model, folder / f"{name} model {ranks.rank}")
    engine = FakeVLLM(Network(loaded.model.eval()), [1], folder=folder / f"{name} model {ranks.rank}")
    engine.encode = lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    with serving(engine) as server:
        url = ranks.from_first(server.url)
        found = small_run(folder, name, ranks, ("sampler.url", url), ("sampler.shared", str(folder / "shared")))
    connect.connect = Served
    return found


CONNECT = connect.connect
KINDS = {"run": small_run, "stopped": stopped, "lost": lost, "http": over_http}


def done(job: str, folder: Path, ranks: Ranks) -> object:
    kind, _, name = job.partition(":")
    if kind == "resume":
        return resume(folder / name, [("steps", 4)], Given(ranks=ranks), plain=True).is_finished
    return KINDS[kind](folder, name, ranks) if name else {**CASES, **FOUR, **CHECKS}[job](ranks)


def main(rank: int, size: int, folder: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Team(rank, size, local_size=size, meeting=f"file://{folder}/meeting")
    ranks.open(RanksConfig(deadline=120.0), "cpu")
    connect.connect = Served
    found = {job: done(job, folder, ranks) for job in jobs}
    if rank == 0:
        torch.save(found, folder / "results.pt")
    ranks.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
