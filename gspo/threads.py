"""How many CPU threads a run gets, and why.

OpenMP threads meet at a barrier after every operation and spin there. When another process holds one of the cores,
all of them wait for it: two threads have been measured 10 to 30 times slower than one. So the number is not taken on
trust from the number of cores: a burst of operations of a layer's size is timed with one thread and with all.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

SMALL = 20e6
"""Parameters under which one thread is faster, or at least never ruinously slower, than several."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a container's share of the machine stands: microseconds per period, or max."""


@dataclass(frozen=True, kw_only=True)
class Threads:
    number: int
    why: str
    """For the run's first lines."""

    def __str__(self) -> str:
        return f"{self.number} thread{'s' if self.number > 1 else ''} ({self.why})"


def available_cores(quota: Path = CPU_QUOTA) -> int:
    """Cores that this process may use: of its affinity, and of its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def burst(number: int) -> float:
    """Seconds for a few operations of the size of a layer, on `number` threads; the smallest time is no help here."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        x, weight = torch.ones(512, 576), torch.ones(576, 1536)
        times = []
        for _ in range(7):
            started = time.perf_counter()
            for _ in range(4):
                torch.nn.functional.silu(x @ weight).mul_(2.0)
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    finally:
        torch.set_num_threads(before)


def choose_threads(
    setting: int,
    parameters: int,
    cores: int | None = None,
    seconds: Callable[[int], float] = burst,
) -> Threads:
    """Threads for a model of so many parameters; `setting` 0 leaves the choice to us."""
    cores = available_cores() if cores is None else cores
    if setting:
        crowd = f", on {cores} core{'s' if cores > 1 else ''}: expect it to be many times slower"
        return Threads(number=setting, why="as set" + (crowd if setting > cores else ""))
    if parameters < SMALL:
        return Threads(number=1, why="a small model")
    if cores == 1:
        return Threads(number=1, why="one core")
    alone, together = seconds(1), seconds(cores)
    if together > 0.9 * alone:
        return Threads(
            number=1,
            why=f"{cores} threads took {together / alone:.1f}x the time of one: another process holds the cores",
        )
    return Threads(number=cores, why=f"{alone / together:.1f}x as fast as one")
