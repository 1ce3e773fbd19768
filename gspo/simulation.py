"""A discrete-event model of a run on many devices: step time, idle shares and staleness, from measured rates.

Sampling: each of the sampling devices decodes its share of the rows, and a step of the decoder with b rows takes

    d(b) = token_seconds + row_seconds * b                                                           (1)

so that a device which decodes lengths l_1 .. l_n all at once takes token_seconds * max(l) + row_seconds * sum(l); where
`rows_at_once` bounds b, a completion that ends makes place for a waiting one. A batch ends with its last completion.
Training: `train_seconds` per token of the batch, divided by the training devices and their `efficiency`, and
`step_seconds` for what no device shortens. The two sides are coupled as in `gspo.training.overlap`: batch s is begun
when s - max_policy_lag steps have been trained and batch s - 1 has been sampled, and takes `sync_seconds` first for new
weights. At lag 0 they take turns.

Left out: devices that differ, rewards (count them into `step_seconds`), failures.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured, on one device of each kind."""

    token_seconds: float
    """Of one step of the decoder, whatever its rows: (1)."""
    row_seconds: float
    """Of each row in it."""
    train_seconds: float
    """Of each prompt and completion token of a batch: old log-probs and updates."""
    step_seconds: float = 0.0
    """Of a step, on one device: saving, metrics."""
    sync_seconds: float = 0.0
    """Of new weights on their way into the sampler."""
    reward_seconds: float = 0.0
    """Of scoring a batch, where sampling waits for it."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A step's batch. `lengths` are completion lengths as they were seen; batches draw from them."""

    rows: int
    lengths: tuple[int, ...]
    prompt_tokens: int
    """Of all rows together."""


@dataclass(frozen=True, kw_only=True)
class Devices:
    """How many sample, how many train."""

    sampling: int = 1
    training: int = 1
    rows_at_once: int = 512
    """Completions that a sampling device decodes at once."""
    efficiency: float = 1.0
    """Of the training devices together, against as many times one."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    devices: Devices
    max_policy_lag: int
    step_seconds: float
    trainer_idle: float
    """Share of the time."""
    sampler_idle: float
    mean_lag: float

    @property
    def sampling(self) -> int:
        return self.devices.sampling


def decode_seconds(lengths: Sequence[int], rates: Rates, rows_at_once: int) -> float:
    """Of one device, by (1). Waiting completions take the places of those that end, in order."""
    waiting = list(lengths)[::-1]
    running: list[int] = []
    done = 0
    """Steps of the decoder; `running` holds the step at which each ends."""
    seconds = 0.0
    while waiting or running:
        while waiting and len(running) < rows_at_once:
            heapq.heappush(running, done + waiting.pop())
        until = running[0]
        seconds += (until - done) * (rates.token_seconds + rates.row_seconds * len(running))
        done = until
        while running and running[0] == done:
            heapq.heappop(running)
    return seconds


def sample_seconds(lengths: Sequence[int], rates: Rates, devices: Devices) -> float:
    """Of a batch whose rows are dealt out to the devices in turn."""
    shares = [list(lengths[i :: devices.sampling]) for i in range(devices.sampling)]
    return max(decode_seconds(share, rates, devices.rows_at_once) for share in shares) + rates.reward_seconds


def train_seconds(tokens: int, rates: Rates, devices: Devices) -> float:
    return rates.step_seconds + rates.train_seconds * tokens / (devices.training * devices.efficiency)


def forecast(
    rates: Rates, work: Work, devices: Devices, max_policy_lag: int, steps: int = 200, seed: int = 0
) -> Forecast:
    """The run's steady state: its first tenth is left out of the means."""
    draw = np.random.default_rng(seed)
    batches = [draw.choice(work.lengths, work.rows).tolist() for _ in range(steps)]
    sampling = [sample_seconds(lengths, rates, devices) for lengths in batches]
    training = [train_seconds(work.prompt_tokens + sum(lengths), rates, devices) for lengths in batches]
    return coupled(sampling, training, rates.sync_seconds, devices, max_policy_lag)


def coupled(
    sampling: Sequence[float], training: Sequence[float], sync: float, devices: Devices, max_policy_lag: int
) -> Forecast:
    """Two sides that take these seconds for each step."""
    steps = len(sampling)
    sampled, trained = np.zeros(steps + 1), np.zeros(steps + 1)
    """Times at which so many batches were sampled, and trained."""
    trainer_idle, sampler_idle, lag = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    weights = -1
    for step in range(steps):
        begin = max(sampled[step], trained[max(0, step - max_policy_lag)])
        sampler_idle[step] = begin - sampled[step]
        newest = int(np.searchsorted(trained[: step + 1], begin, side="right")) - 1
        lag[step] = step - newest
        sampled[step + 1] = begin + (sync if newest != weights else 0.0) + sampling[step]
        weights = newest
        ready = max(trained[step], sampled[step + 1])
        trainer_idle[step] = ready - trained[step]
        trained[step + 1] = ready + training[step]
    first = steps // 10
    span = trained[steps] - trained[first]
    return Forecast(
        devices=devices,
        max_policy_lag=max_policy_lag,
        step_seconds=float(span / (steps - first)),
        trainer_idle=float(trainer_idle[first:].sum() / span),
        sampler_idle=float(sampler_idle[first:].sum() / span),
        mean_lag=float(lag[first:].mean()),
    )


def best_split(
    rates: Rates, work: Work, devices: int, max_policy_lag: int, each: Devices = Devices()
) -> list[Forecast]:
    """Every split of `devices` into sampling and training ones, the quickest first."""
    splits = [replace(each, sampling=n, training=devices - n) for n in range(1, devices)]
    found = [forecast(rates, work, split, max_policy_lag) for split in splits]
    return sorted(found, key=lambda one: one.step_seconds)


def fitted(max_lengths: Sequence[float], tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(token_seconds, row_seconds) of (1) from batches that were sampled, by least squares with neither below 0.

    Batches that are all alike cannot tell the two apart: then all of it is counted as `row_seconds`.
    """
    longest, total, spent = (np.asarray(values, dtype=float) for values in (max_lengths, tokens, seconds))
    per_row = float(spent.sum() / total.sum())
    table = np.stack([longest, total], axis=1)
    if len(spent) < 3 or np.linalg.matrix_rank(table / table.max(axis=0), tol=1e-2) < 2:
        return 0.0, per_row
    a, c = np.linalg.lstsq(table, spent, rcond=None)[0]
    if c <= 0:
        return float(spent.sum() / longest.sum()), 0.0
    return (float(a), float(c)) if a > 0 else (0.0, per_row)
