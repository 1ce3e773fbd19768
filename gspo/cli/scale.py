"""`gspo plan --rates RUN`: what a run would take on more devices, by `gspo.simulation` and that run's own rates."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
from rich.table import Table

from gspo.config import RunConfig
from gspo.report.data import Line, column, read_run
from gspo.settings import load_config
from gspo.simulation import Devices, Forecast, Rates, Work, best_split, fitted, forecast

FEWEST = 4
"""Steps that rates are read from, behind the first two, in which caches fill."""
SHOWN = 4


def scale_tables(config: RunConfig, run: Path, devices: int, efficiency: float) -> list[Table]:
    """What `gspo plan --rates` prints."""
    rates, work = measured(run)
    rows = config.prompts_per_step * config.group_size
    work = Work(rows=rows, lengths=work.lengths, prompt_tokens=work.prompt_tokens * rows // work.rows)
    each = Devices(rows_at_once=config.sampler_rows, efficiency=efficiency)
    table = Table(
        "lag", "sample on", "train on", "step", "trainer idle", "sampler idle", "mean lag",
        title=f"{config.name} on {devices} devices, from the rates of {run.name}",
    )  # fmt: skip
    all_of_them = replace(each, sampling=devices, training=devices)
    table.add_row("0", "all", "all, in turn", *_figures(forecast(rates, work, all_of_them, 0)))
    for lag in sorted({1, 2, config.max_policy_lag} - {0}):
        table.add_section()
        for split in best_split(rates, work, devices, lag, each)[:SHOWN]:
            row = (f"{lag}", f"{split.devices.sampling}", f"{split.devices.training}")
            table.add_row(*row, *_figures(split))
    said = Table("rates of one device", "", "from", box=None)
    said.add_row("a step of the decoder", f"{1e3 * rates.token_seconds:.3g} ms", "and")
    said.add_row("  each row in it", f"{1e3 * rates.row_seconds:.3g} ms", "time/sample")
    said.add_row("training a token", f"{1e3 * rates.train_seconds:.3g} ms", "time/update and time/old_logprobs")
    said.add_row("a step besides", f"{rates.step_seconds:.3g} s", "time/save")
    said.add_row("lengths", f"{sum(work.lengths) / len(work.lengths):.1f} tokens", "saved rollouts")
    return [table, said]


def _figures(found: Forecast) -> tuple[str, ...]:
    return (
        f"{found.step_seconds:.3g} s",
        f"{found.trainer_idle:.0%}",
        f"{found.sampler_idle:.0%}",
        f"{found.mean_lag:.2f}",
    )


def measured(run: Path) -> tuple[Rates, Work]:
    """Rates and work of a run folder. Raises ValueError where its steps are too few."""
    found = read_run(run)
    lines = [line for line in found.lines if line.get("step", 0) > 2 and "time/update" in line]
    if len(lines) < FEWEST:
        raise ValueError(
            f"--rates {run}: it has {len(lines)} steps behind the first two, and rates need {FEWEST}; let it run longer"
        )
    lengths = tuple(length for path in found.rollouts for length in _lengths(path))
    if not lengths:
        raise ValueError(f"--rates {run}: it has no saved rollouts, whose lengths are needed")
    config = load_config(run / "config.toml")
    rows = config.prompts_per_step * config.group_size
    tokens = [rows * line["completions/mean_length"] for line in lines]
    sampling = [line.get("time/sample", line.get("overlap/sample", 0.0)) for line in lines]
    token, row = fitted([line["completions/max_length"] for line in lines], tokens, sampling)
    training = sum(line["time/update"] + line.get("time/old_logprobs", 0.0) for line in lines)
    counted = [value for value in column(found.lines, "num_tokens") if value == value]
    all_tokens = sum(after - before for before, after in pairwise([0.0, *counted][-len(lines) - 1 :]))
    return (
        Rates(
            token_seconds=token,
            row_seconds=row,
            train_seconds=training / all_tokens,
            step_seconds=_mean(lines, "time/save"),
            reward_seconds=_mean(lines, "time/reward"),
        ),
        Work(rows=rows, lengths=lengths, prompt_tokens=round((all_tokens - sum(tokens)) / len(lines))),
    )


def _mean(lines: Sequence[Line], name: str) -> float:
    return sum(line.get(name, 0.0) for line in lines) / len(lines)


def _lengths(path: Path) -> list[int]:
    return [len(row["completion_ids"]) for row in pq.read_table(path, columns=["completion_ids"]).to_pylist()]
