"""What the recorded comparisons share: a cold start per seed, runs that are made once, intervals over seeds."""

import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console as Terminal

from gspo.config import ColdStart, Evaluation, RunConfig, Schedule
from gspo.data import DataConfig
from gspo.models import without_progress_bars
from gspo.sampling import Sampling
from gspo.settings import read_recipe, validate
from gspo.sinks import Console
from gspo.training.evaluate import evaluate
from gspo.training.parts import Given, build, export_model
from gspo.training.run import cold_start, read_summary, resume, start, stop_on_signals
from gspo.training.state import checkpoints

ROOT = Path(__file__).parent.parent
ADDITION = RunConfig(
    threads=1,
    prompts_per_step=64,
    group_size=8,
    updates_per_step=4,
    layout="shared_prefix",
    sampler_rows=512,
    sampling=Sampling(temperature=1.0, max_completion_tokens=6),
    schedule=Schedule(kind="linear"),
    cold_start=ColdStart(steps=800, batch=128, lr=2e-3),
    data=DataConfig(task="addition", held_out_prompts=1000),
    evaluation=Evaluation(every=10, prompts=1000),
    trackers=(),
)
"""The tiny model on sums, as every comparison has it."""
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantiles of Student's t by degrees of freedom."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Runs lie in `folder`, and one process at a time makes them: a second one ends with a line."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"another process is making the runs in {folder}; wait for it") from None
        yield


def quiet(title: str, steps: int) -> Console:
    return Console(steps, title=title, plain=True, terminal=Terminal(quiet=True))


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON at `path`, made and written if it is not there."""
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1))
    return json.loads(path.read_text())


def started_model(config: RunConfig, folder: Path) -> tuple[str, dict[str, Any]]:
    """The model after the supervised start of `config`, trained once and kept in `folder`; and how it came about."""

    def make() -> dict[str, Any]:
        began = time.perf_counter()
        parts = build(config, report=lambda text: None)
        with without_progress_bars(), stop_on_signals(print) as should_stop:
            steps = cold_start(parts, quiet("cold start", 1), should_stop)
            if should_stop():
                raise SystemExit("stopped in a cold start; the same command makes it again")
            export_model(parts, folder / "model")
        rows = parts.dataset.held_out
        result = evaluate(parts.evaluation_source(0.0), rows, parts.dataset.is_correct)
        parts.rewards.close()
        facts = {"supervised_steps": steps, "accuracy": result.accuracy, "seconds": time.perf_counter() - began}
        print(f"cold start in {folder}: {steps} steps, {result.accuracy:.1%}, {facts['seconds']:.0f} s", flush=True)
        return facts

    facts = once(folder / "cold-start.json", make)
    return str(folder / "model"), facts


def finished_run(config: RunConfig, keep_checkpoints: bool = False, given: Given = Given()) -> Path:
    """The folder of the finished run of `config`: as it is, gone on with where it was interrupted, or run now."""
    folder = Path(config.folder)
    if (folder / "config.toml").is_file() and validate(read_recipe(folder / "config.toml")) != config:
        raise ValueError(f"{folder} holds a run of other settings; remove it, and this command runs it again")
    if (folder / "summary.json").is_file() and read_summary(folder)["finished"]:
        return folder
    if checkpoints(folder / "checkpoints"):
        run = resume(folder, given=given, plain=True)
    else:  # nothing to go on with: it ended before its first checkpoint, or never began
        shutil.rmtree(folder, ignore_errors=True)
        run = start(config, given, console=quiet(config.name, config.steps))
    if not run.is_finished:
        raise SystemExit(f"stopped in {folder}; the same command goes on")
    if not keep_checkpoints:
        shutil.rmtree(folder / "checkpoints")
    shown = [f"{scores['accuracy']:.3f}" for name in ("before", "after") if "accuracy" in (scores := run.summary[name])]
    print(f"{folder}: {run.summary['seconds']:.0f} s  {' -> '.join(shown)}".rstrip(), flush=True)
    return folder


def run_or_failure(config: RunConfig, folder: Path) -> str:
    """Makes sure of the run; what it said if it diverged, which is not tried again."""
    noted = folder / "failure.txt"
    if not noted.is_file():
        try:
            finished_run(config)
        except ValueError as error:
            if "diverged" not in str(error):
                raise
            noted.write_text(str(error))
    return noted.read_text() if noted.is_file() else ""


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval by Student's t; of one or two seeds, their range."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 3:
        return {"mean": mean, "low": float(array.min()), "high": float(array.max()), "seeds": array.tolist()}
    half = float(STUDENT[len(array) - 1] * array.std(ddof=1) / math.sqrt(len(array)))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": array.tolist()}


def percent(found: dict[str, Any], digits: int = 1) -> str:
    """ "71.2 % [69.0, 73.4]"."""
    mean, low, high = (f"{100 * found[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} % [{low}, {high}]"


def points_of(found: dict[str, Any]) -> str:
    """ "-4.1 [-7.7, -0.4]", a difference of shares in points."""
    mean, low, high = (f"{100 * found[name]:+.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats with `digits` significant digits, everywhere inside."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def put_table(page: Path, name: str, table: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- end NAME -->` on a page."""
    head, found, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, closing, tail = rest.partition(f"\n<!-- end {name} -->")
    if not found or not closing:
        raise ValueError(f"{page} has no place for the table: <!-- {name} --> and <!-- end {name} -->")
    page.write_text(f"{head}{found}{table}{closing}{tail}")


def put_record(docs: Path, name: str, record: dict[str, Any], table: str) -> None:
    """All figures to records/NAME.json, and the table to the screen and its place in results.md."""
    target = docs / "records" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rounded(record, 5), indent=1))
    print(table)
    put_table(docs / "results.md", name, table)
