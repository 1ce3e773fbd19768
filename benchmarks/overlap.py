"""Sampling beside training against sampling in turn with it, on two processes, each pinned to one core.

    OMP_NUM_THREADS=1 python benchmarks/overlap.py [--rounds 3] [--steps 24]

The tiny model samples 48 x 8 completions of at most 24 digits a step in a process of its own and trains them in four
updates. Under a lag the sampler's log-probs are those of older weights, and the trainer scores completions once more
(`old_logprobs` = "policy"); all runs do, so that their steps hold the same work. Of each round, side by side:

- in turn: `max_policy_lag` = 0, while a process of idle priority on either core multiplies matrices whenever its side
  waits, so that the single times of sampling and training are those of a machine of which the other core is at work;
- beside: `max_policy_lag` = 1 and 2.

`bound` is the step over max(sample, train) of the round in turn; the goal is 1.1. `speedup` is against that round,
`speedup_auto` against it less the scoring, which a run in turn with a sampler like this one does not need. `forecast`
is what gspo.simulation makes of the single times of that round's steps, over the step that was measured; the goal is
0.8 to 1.2. Medians over rounds, and all of them in the JSON.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gspo.config import RunConfig
from gspo.samplers.copied import Copied, InProcessOfItsOwn
from gspo.settings import validate
from gspo.simulation import Devices, coupled
from gspo.sinks import Record, Sink
from gspo.training.folder import RunFolder
from gspo.training.loop import train_steps
from gspo.training.parts import build
from gspo.training.state import TrainState
from gspo.training.update import initial_states

TARGET = Path(__file__).parent / "out" / "overlap.json"
SKIPPED = 4
"""First steps, in which the process starts and caches fill; as many at the end, with nothing left to sample."""
LAGS = (1, 2)


def config(folder: Path, steps: int, lag: int) -> RunConfig:
    return validate(
        {
            "folder": str(folder),
            "model": "tiny",
            "threads": 1,
            "steps": steps,
            "prompts_per_step": 48,
            "group_size": 8,
            "updates_per_step": 4,
            "sampling": {"max_completion_tokens": 24},
            "rewards": [{"name": "length", "options": {"target_tokens": 12}}],
            "optimizer": {"lr": 1e-6},
            "evaluation": {"every": 0, "prompts": 1},
            "checkpoints": {"every": steps},
            "trackers": [],
            "sampler": {"name": "process"},
            "max_policy_lag": lag,
            "old_logprobs": "policy",
        }
    )


class Kept:
    """The metrics of every step."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def write(self, record: Record) -> None:
        self.lines.append(dict(record.metrics))

    def close(self) -> None: ...


def spin() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    torch.set_num_threads(1)
    a = torch.randn(256, 256)
    while True:
        a = (a @ a).clamp(-1, 1)


@contextmanager
def loaded(cores: tuple[int, ...]) -> Iterator[None]:
    """Cores that are never idle, and always free for others."""
    context = multiprocessing.get_context("fork")
    spinners = [context.Process(target=spin, daemon=True) for _ in cores]
    for core, process in zip(cores, spinners, strict=True):
        process.start()
        os.sched_setaffinity(process.pid or 0, {core})
    try:
        yield
    finally:
        for process in spinners:
            process.kill()
            process.join()


def measured(steps: int, lag: int, cores: tuple[int, int]) -> list[dict[str, float]]:
    """The metrics of a run's steps, the first and the last ones left out."""
    kept = Kept()
    with tempfile.TemporaryDirectory() as folder:
        parts = build(config(Path(folder) / "run", steps, lag), report=lambda line: None)
        sampler = parts.sampler
        assert isinstance(sampler, Copied) and isinstance(sampler.sampler, InProcessOfItsOwn)
        for thread in os.listdir(f"/proc/{sampler.sampler.pid}/task"):
            os.sched_setaffinity(int(thread), {cores[0]})
        os.sched_setaffinity(0, {cores[1]})
        state = TrainState(advantage=parts.advantage.init(), objective=initial_states(parts.terms))
        sinks: list[Sink] = [kept]
        try:
            train_steps(parts, state, None, RunFolder(Path(folder) / "run"), sinks)
        finally:
            sampler.close()
            os.sched_setaffinity(0, set(cores))
    return kept.lines[SKIPPED:-SKIPPED]


def one_round(steps: int, cores: tuple[int, int]) -> dict[str, Any]:
    with loaded(cores):
        single = measured(steps, 0, cores)
    sampling = [line["time/sample"] + line["time/reward"] for line in single]
    training = [line["step_time"] - spent for line, spent in zip(single, sampling, strict=True)]
    found: dict[str, Any] = {
        "in_turn": statistics.mean(line["step_time"] for line in single),
        "sample": statistics.mean(sampling),
        "train": statistics.mean(training),
        "scoring": statistics.mean(line["time/old_logprobs"] for line in single),
    }
    for lag in LAGS:
        lines = measured(steps, lag, cores)
        step = statistics.mean(line["step_time"] for line in lines)
        forecast = coupled(sampling * 4, training * 4, 0.0, Devices(), lag)
        found[f"lag_{lag}"] = {
            "step": step,
            "bound": step / max(found["sample"], found["train"]),
            "speedup": found["in_turn"] / step,
            "speedup_auto": (found["in_turn"] - found["scoring"]) / step,
            "forecast": forecast.step_seconds / step,
            "trainer_idle": sum(line["time/wait"] for line in lines) / sum(line["step_time"] for line in lines),
            "sampler_idle": sum(line["overlap/sampler_idle"] for line in lines)
            / sum(line["overlap/sampler_idle"] + line["overlap/sampling"] for line in lines),
            "max_lag": max(line["policy_lag/max"] for line in lines),
        }
    return found


def median(rounds: list[dict[str, Any]], lag: int, name: str) -> float:
    return statistics.median(one[f"lag_{lag}"][name] for one in rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise SystemExit("two cores are needed, and this process may use one")
    torch.set_num_threads(1)
    rounds = []
    for number in range(args.rounds):
        rounds.append(one_round(args.steps, (available[0], available[1])))
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", flush=True)
    table = Table(
        "max_policy_lag", "step over max(sample, train)", "speed-up over in turn", "over in turn, unscored",
        "forecast over measured", "trainer idle", "sampler idle",
        title=f"two processes, {args.rounds} rounds of {args.steps} steps, one thread each",
    )  # fmt: skip
    for lag in LAGS:
        names = ("bound", "speedup", "speedup_auto", "forecast", "trainer_idle", "sampler_idle")
        bound, speedup, auto, forecast, trainer, sampler = (median(rounds, lag, name) for name in names)
        table.add_row(
            f"{lag}", f"{bound:.2f}", f"{speedup:.2f}x", f"{auto:.2f}x", f"{forecast:.2f}", f"{trainer:.0%}",
            f"{sampler:.0%}",
        )  # fmt: skip
    Console(width=120).print(table)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(
        json.dumps({"machine": platform.machine(), "cores": 2, "steps": args.steps, "rounds": rounds}, indent=1)
    )


if __name__ == "__main__":
    main()
