"""A command on the processes that torchrun started: they meet, and where one fails all end, with one line."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gspo.dist.ranks import Ranks, Team, ranks_of

MISTAKE = 2
"""Exit code."""


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The ranks that torchrun's variables speak of; one process where there are none."""
    ranks = ranks_of(environment)
    try:
        yield ranks
    except Exception as error:
        if not isinstance(ranks, Team):
            raise
        _leave(ranks, error)
    if isinstance(ranks, Team):
        ranks.close()


def _leave(ranks: Team, error: Exception) -> None:
    """End this process. Not by way of the interpreter's end, which would wait for threads that wait for other ranks."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the ranks that are left
    line = line_of(ranks, error)
    if ranks.is_first_to_fail(line, waits=is_of_connection(error)):
        print(f"gspo: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(MISTAKE)


def line_of(ranks: Team, error: Exception) -> str:
    """What the user reads: a mistake as it is, and of anything else where it happened."""
    said = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return said
    if is_of_connection(error):
        return (
            f"rank {ranks.rank} lost the others: one of them was killed, or made it wait longer than ranks.deadline; "
            "the newest checkpoint is kept, and gspo resume goes on from it"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"rank {ranks.rank}: {type(error).__name__}: {said} ({last.filename}:{last.lineno})"


def is_of_connection(error: BaseException) -> bool:
    """Whether it says that another rank is gone, and not what is wrong here."""
    import torch.distributed as dist

    is_lost = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
    return is_lost or (error.__cause__ is not None and is_of_connection(error.__cause__))
