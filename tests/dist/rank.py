"""One of the processes of a test: python rank.py RANK SIZE FOLDER JOB ...; rank 0 writes FOLDER/results.pt.

A job is a case of `spread.py`; or `run:NAME`, a small run in FOLDER/NAME; or `resume:NAME`, of one that is there.
"""

import copy
import sys
from pathlib import Path

import torch
from runs import settings
from small_runs import RUNS
from spread import CASES

from gspo.dist.config import RanksConfig
from gspo.dist.policy import RankedPolicy
from gspo.dist.ranks import Ranks, Team
from gspo.policies.network import Network
from gspo.samplers import connect
from gspo.samplers.base import SampleRequest
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
        model = copy.deepcopy(policy.network.model).eval()
        self.inner = InProcess(Network(model), self.stop_ids, 0, self.rows)
        self.inner.sync_weights(policy, version)

    def sample(self, requests: list[SampleRequest]) -> list[list[Completion]]:
        return self.inner.sample(requests)


def done(job: str, folder: Path, ranks: Ranks) -> object:
    if job.startswith("run:"):
        name = job.removeprefix("run:")
        connect.connect = Served
        config = settings(folder / name, *RUNS[name], ("device", "cpu"))
        return start(config, Given(ranks=ranks), console_of(config, ranks, True)).is_finished
    if job.startswith("resume:"):
        return resume(folder / job.removeprefix("resume:"), [("steps", 4)], Given(ranks=ranks), plain=True).is_finished
    return CASES[job](ranks)


def main(rank: int, size: int, folder: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Team(rank, size, local_size=size, meeting=f"file://{folder}/meeting")
    ranks.open(RanksConfig(deadline=120.0), "cpu")
    found = {job: done(job, folder, ranks) for job in jobs}
    if rank == 0:
        torch.save(found, folder / "results.pt")
    ranks.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
