"""A run under torchrun that something happens to: python failing.py FOLDER WHAT [beside]."""

import os
import signal
import sys
import time
from pathlib import Path

from runs import settings

import gspo.training.loop as loop
from gspo.dist.launch import joined
from gspo.training.parts import Given
from gspo.training.run import console_of, start


def happening(what: str, rank: int):
    """In place of `run_updates`, in the second step."""
    real, calls = loop.run_updates, [0]

    def run_updates(*args, **named):
        calls[0] += 1
        if calls[0] == 2 and rank == 1:
            if what == "error":
                raise RuntimeError("planted on rank 1")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)

    return run_updates


BESIDE = (("sampler", "process"), ("max_policy_lag", 1))


def main(folder: Path, what: str, *how: str) -> None:
    with joined(os.environ) as ranks:
        if what == "early":
            time.sleep(0.0 if ranks.rank else 1.0)  # the one that speaks comes last
            raise ValueError("planted before the ranks met")
        loop.run_updates = happening(what, ranks.rank)
        overrides = (("device", "cpu"), ("steps", 200 if what == "stop" else 4), ("ranks.deadline", 60.0))
        config = settings(folder, *overrides, ("checkpoints.every", 1), *(BESIDE if how else ()))
        start(config, Given(ranks=ranks), console_of(config, ranks, True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
