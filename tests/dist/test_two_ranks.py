"""Two ranks over gloo equal one process: gradients, clipped updates, whole runs, checkpoints of either."""

import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from comparing import ENVIRONMENT, HERE, assert_close_runs, assert_same_updates, many_ranks
from rank import Served
from runs import metrics, settings
from small_runs import RUNS, SERVED
from spread import CASES

from gspo.samplers import connect
from gspo.training.run import resume, start
from gspo.training.state import checkpoints, damage, load_newest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FAST = ["clipped, compared", "split", "tokens", "lora", "turns", "cold", "replicated", "served"]
AHEAD = ["run:beside", "stopped:stopped", "lost:lost", "http:http"]
"""Jobs that sample beside training."""
SLOW = ["split, lora", "tokens, ahead", "curve", "phases", "pairs", "a rounded sampler", "apart", "beside, replicated"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Everything that two ranks do, in one start of two processes: (results by job, their folder)."""
    folder = tmp_path_factory.mktemp("ranks")
    start(settings(folder / "from one", ("steps", 2)))
    jobs = [*CASES, *(f"run:{name}" for name in (*FAST, "half")), *AHEAD, "resume:from one"]
    return many_ranks(folder, jobs), folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_updates_of_two_ranks_are_those_of_one(done, case):
    assert_same_updates(done[0][case], case)


@pytest.mark.parametrize("name", FAST)
def test_a_run_of_two_ranks_is_that_of_one(done, tmp_path, name):
    in_process = (("sampler", "in_process"), ("device", "cpu"))
    start(settings(tmp_path / "one", *RUNS[name], *in_process))
    assert_close_runs(tmp_path / "one", done[1] / name)


def prompts(folder: Path) -> list[int]:
    """Every prompt that was trained, in order, once per group."""
    rows = [row for path in sorted(folder.glob("rollouts/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [prompt for prompt, _ in groupby(row["prompt_id"] for row in rows)]


def lags(folder: Path) -> list[float]:
    return [line["policy_lag/max"] for line in metrics(folder) if "policy_lag/max" in line]


def test_ranks_that_train_while_rank_0_samples_are_one_process_that_does(done, tmp_path, monkeypatch):
    """There the copy is in the same process: where it samples does not matter."""
    monkeypatch.setattr(connect, "connect", Served)
    start(settings(tmp_path / "one", *RUNS["beside"], ("sampler", SERVED), ("device", "cpu")))
    assert_close_runs(tmp_path / "one", done[1] / "beside")
    assert lags(done[1] / "beside") == [0, 1, 1, 1]


def test_ranks_resumed_in_the_middle_repeat_and_skip_nothing(done):
    folder = done[1] / "stopped"
    assert done[0]["stopped:stopped"] == (False, True)
    assert prompts(folder) == list(range(24))
    found = lags(folder)
    assert len(found) == 6 and max(found) <= 2 and found[3] == 0  # the first batch after resuming is fresh


def test_a_sampler_that_is_lost_reaches_every_rank_and_nothing_else_is(done):
    """Its third batch fails while the second step trains: the state behind that step is saved by all ranks."""
    folder = done[1] / "lost"
    said, saved, is_finished = done[0]["lost:lost"]
    assert said == [f"gone; the newest checkpoint is step_000002; go on with: gspo resume {folder}"] * 2
    assert saved == ["step_000000", "step_000002"] and is_finished and prompts(folder) == list(range(16))


def test_ranks_sample_ahead_over_http(done):
    assert done[0]["http:http"] and prompts(done[1] / "http") == list(range(16))
    found = lags(done[1] / "http")
    assert len(found) == 4 and 1 <= max(found) <= 2
    assert not list((done[1] / "shared").iterdir()), "the run's folder goes with it"


def test_checkpoints_are_read_by_any_number_of_ranks(done, tmp_path):
    folder = done[1]
    for name in ("half", "from one"):
        assert [damage(path) for path in checkpoints(folder / name / "checkpoints")] == ["", ""]
    assert (checkpoints(folder / "half" / "checkpoints")[0] / "weights").is_dir()
    start(settings(tmp_path / "whole", ("device", "cpu")))
    resume(folder / "half", [("steps", 4)])
    for name in ("half", "from one"):
        lines, whole = metrics(folder / name), metrics(tmp_path / "whole")
        assert len(lines) == len(whole)
        assert lines[-1] == pytest.approx(whole[-1], rel=1e-4, abs=1e-5)
    state, tensors = load_newest(folder / "from one" / "checkpoints", print)
    assert state.step == 4 and all(type(tensor) is torch.Tensor for tensor in tensors.values())


def test_a_checkpoint_of_another_shape_is_one_clear_line(done, tmp_path):
    source = done[1] / "clipped, compared"
    for width in (("tiny.intermediate_size", 48), ("tiny.layers", 3)):
        with pytest.raises(ValueError, match=r"the checkpoint does not fit the model: parameter .* is "):
            resume(source, [width, ("steps", 9)])


def test_a_damaged_shard_is_found(done, tmp_path):
    import shutil

    shutil.copytree(done[1] / "lora", tmp_path / "run")
    newest = checkpoints(tmp_path / "run" / "checkpoints")[0]
    shard = newest / "weights" / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert damage(newest) == "weights/__1_0.distcp does not match its hash"


@pytest.mark.slow
def test_longer_runs_of_two_ranks_are_those_of_one(tmp_path):
    many_ranks(tmp_path, [f"run:{name}" for name in SLOW])
    for name in SLOW:
        start(settings(tmp_path / "one" / name, *RUNS[name], ("device", "cpu")))
        assert_close_runs(tmp_path / "one" / name, tmp_path / name)


# ---- under torchrun


def under_torchrun(folder: Path, *what: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*TORCHRUN, str(HERE / "failing.py"), str(folder), *what],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_error_on_one_rank_ends_all_with_one_line(tmp_path):
    said, _ = under_torchrun(tmp_path / "run", "error").communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("gspo: ")]
    assert len(lines) == 1 and lines[0].startswith("gspo: rank 1: RuntimeError: planted on rank 1 ("), said
    assert "exitcode  : 2" in said


def test_a_mistake_before_the_ranks_meet_is_one_line_whoever_is_first(tmp_path):
    said, _ = under_torchrun(tmp_path / "run", "early").communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("gspo: ")]
    assert lines == ["gspo: planted before the ranks met"], said


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("beside",)])
def test_a_killed_rank_ends_all_with_one_line(tmp_path, how):
    said, _ = under_torchrun(tmp_path / "run", "kill", *how).communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("gspo: ")]
    assert len(lines) == 1 and lines[0].startswith("gspo: rank 0 lost the others"), said
    resume(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("beside",)])
def test_sigterm_saves_once_and_the_run_goes_on(tmp_path, how):
    """A sampler's process is not ended with the ranks: it finishes what it is at."""
    import signal
    import time

    process = under_torchrun(tmp_path / "run", "stop", *how)
    path, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 100
    while time.monotonic() < until and not (path.exists() and path.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    steps = metrics(tmp_path / "run")[-1]["step"]
    assert said.count("stopped and saved at step") == 1 and f"at step {steps};" in said
    assert load_newest(tmp_path / "run" / "checkpoints", print)[0].step == steps
