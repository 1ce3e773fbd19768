"""Many ranks over gloo beside one process: their updates and their runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import metrics, weights
from spread import CASES, FOUR

from gspo.dist.ranks import ALONE

HERE = Path(__file__).parent
PLACES = [str(HERE), *(str(HERE.parent / name) for name in ("conformance", "resume", "servers"))]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "PYTHONPATH": os.pathsep.join(PLACES)}


def many_ranks(folder: Path, jobs: list[str], size: int = 2) -> dict:
    """What the jobs give on rank 0 of `size` ranks."""
    start = lambda rank: subprocess.Popen(  # noqa: E731
        [sys.executable, HERE / "rank.py", str(rank), str(size), str(folder), *jobs],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    processes = [start(rank) for rank in range(size)]
    said = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)
    return torch.load(folder / "results.pt", weights_only=False)


def assert_same_updates(two: dict, case: str) -> None:
    alone = {**CASES, **FOUR}[case]
    one = alone(ALONE)
    assert two.keys() == one.keys()
    assert all(one[f"{number} norm"] > 1e-3 for number in range(2))  # clipping is at work
    is_half = alone.dtype == torch.bfloat16
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2 if is_half else 1e-9, atol=2e-2 if is_half else 1e-11)


def lines_of(folder: Path) -> list[dict]:
    """Metrics without the seconds of the side that sampled."""
    return [{k: v for k, v in line.items() if not k.startswith("overlap/")} for line in metrics(folder)]


def assert_close_runs(one: Path, two: Path) -> None:
    left, right = lines_of(one), lines_of(two)
    assert [line.keys() for line in left] == [line.keys() for line in right]
    for a, b in zip(left, right, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=5e-5)
    names = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.glob("*/step_*.*"))  # noqa: E731
    assert names(one) == names(two)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
