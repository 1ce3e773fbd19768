"""The discrete-event model against closed forms, and against a real loop of two sides."""

import random
import time
from pathlib import Path

import pytest
from test_ahead import Counted, Telling, trained

from gspo.cli.scale import measured
from gspo.cli.verbs import plan
from gspo.simulation import Devices, Rates, Work, best_split, coupled, decode_seconds, fitted, forecast
from gspo.training.overlap import Ahead

RATES = Rates(token_seconds=0.01, row_seconds=0.001, train_seconds=1e-4)
LENGTHS = (3, 9, 4, 20, 7, 1, 15)


def test_all_at_once_is_the_longest_and_the_sum() -> None:
    assert decode_seconds(LENGTHS, RATES, 512) == pytest.approx(0.01 * max(LENGTHS) + 0.001 * sum(LENGTHS))


def test_one_at_a_time_is_a_row_after_another() -> None:
    assert decode_seconds(LENGTHS, RATES, 1) == pytest.approx(0.011 * sum(LENGTHS))


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_waiting_rows_take_the_places_of_those_that_end(at_once: int) -> None:
    """Counted token by token."""
    waiting, running, seconds = list(LENGTHS), [], 0.0
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
        seconds += 0.01 + 0.001 * len(running)
        running = [left - 1 for left in running if left > 1]
    assert decode_seconds(LENGTHS, RATES, at_once) == pytest.approx(seconds)


@pytest.mark.parametrize(("sample", "train"), [(1.0, 0.4), (0.4, 1.0), (1.0, 1.0)])
def test_constant_sides_meet_their_bounds(sample: float, train: float) -> None:
    turns = coupled([sample] * 50, [train] * 50, 0.1, Devices(), 0)
    assert turns.step_seconds == pytest.approx(sample + train + 0.1) and turns.mean_lag == 0
    assert turns.trainer_idle == pytest.approx((sample + 0.1) / (sample + train + 0.1))
    for lag in (1, 3):
        beside = coupled([sample] * 50, [train] * 50, 0.0, Devices(), lag)
        assert beside.step_seconds == pytest.approx(max(sample, train))
        assert beside.mean_lag == pytest.approx(lag if sample < train else 1)
        assert min(beside.trainer_idle, beside.sampler_idle) == pytest.approx(0, abs=1e-9)


def test_slack_helps_where_times_scatter() -> None:
    draw = random.Random(0)
    sample, train = ([draw.expovariate(1.0) for _ in range(2000)] for _ in range(2))
    steps = [coupled(sample, train, 0.0, Devices(), lag).step_seconds for lag in (0, 1, 2, 8)]
    assert steps == sorted(steps, reverse=True) and steps[0] > 1.2 * steps[1] and steps[3] > 0.95


def test_it_says_what_a_real_loop_does() -> None:
    """The threads of `Ahead` with sides that sleep: a scale at which waking up late is small."""
    draw = random.Random(1)
    sample, train = ([draw.uniform(0.01, 0.05) for _ in range(30)] for _ in range(2))
    for lag in (1, 2):
        sampler = Telling()
        began = time.perf_counter()
        feed = Ahead(Counted(sampler, lambda step: sample[step]), sampler, None, max_lag=lag, until=30)
        trained(feed, 30, lambda step: train[step])
        took = time.perf_counter() - began
        said = coupled(sample, train, 0.0, Devices(), lag)
        assert 0.9 < took / (30 * said.step_seconds) < 1.35


def test_the_best_split_gives_the_slow_side_more() -> None:
    work = Work(rows=64, lengths=(100,), prompt_tokens=0)
    slow_sampler = Rates(token_seconds=0.0, row_seconds=3e-3, train_seconds=1e-3)
    best = best_split(slow_sampler, work, 8, 1)[0]
    assert (best.devices.sampling, best.devices.training) == (6, 2)
    assert best.step_seconds == pytest.approx(64 * 100 * 3e-3 / 6 + 0, rel=0.05)


def test_more_devices_do_not_shorten_the_longest_completion() -> None:
    work = Work(rows=8, lengths=(200,), prompt_tokens=0)
    rates = Rates(token_seconds=0.01, row_seconds=0.0, train_seconds=0.0)
    assert forecast(rates, work, Devices(sampling=8), 0).step_seconds == pytest.approx(2.0)


def test_rates_are_found_again() -> None:
    draw = random.Random(2)
    longest = [draw.randint(20, 200) for _ in range(12)]
    tokens = [draw.randint(2000, 9000) for _ in range(12)]
    seconds = [0.004 * a + 0.0003 * b for a, b in zip(longest, tokens, strict=True)]
    assert fitted(longest, tokens, seconds) == pytest.approx((0.004, 0.0003))
    same = fitted([24.0] * 9, [4000.0] * 9, [2.0] * 9)
    assert same == (0.0, pytest.approx(2.0 / 4000))


def test_plan_reads_a_run_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runs import settings

    from gspo.training.run import start

    run = start(settings(tmp_path / "run", ("steps", 7), ("evaluation.every", 0)))
    rates, work = measured(run.folder)
    assert work.rows == 16 and rates.train_seconds > 0 and rates.row_seconds + rates.token_seconds > 0
    assert work.prompt_tokens == pytest.approx(16 * 6, rel=0.2) and all(1 <= n <= 4 for n in work.lengths)
    assert plan(["addition", "--rates", str(run.folder), "--nodes", "2", "--devices-per-node", "2"]) == 0
    assert "addition on 4 devices" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--nodes needs --rates RUN"):
        plan(["addition", "--nodes", "2"])
    with pytest.raises(ValueError, match="no run in"):
        plan(["addition", "--rates", str(tmp_path)])
    short = start(settings(tmp_path / "short", ("steps", 3)))
    with pytest.raises(ValueError, match="it has 1 steps behind the first two"):
        measured(short.folder)
