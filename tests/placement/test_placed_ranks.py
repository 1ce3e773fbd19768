"""Ranks that Ray places, against the same ranks under torchrun; one of them killed; with a sampler of Ray's."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray_processes import pids_of
from runs import SETTINGS, metrics, settings, weights
from test_leash import waited
from test_placed_runs import CPUS, RUN, STEPS, Shown, finished_alike, prompts

from gspo.placement.run import resume_placed, start_placed
from gspo.settings import apply_overrides, write_toml
from gspo.training.run import resume, start
from gspo.training.state import checkpoints, damage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
RANKS = (("placement.on", "local"), ("placement.policies", 2), ("placement.samplers", 0), *CPUS)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks under torchrun."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "small.toml").write_text(write_toml(apply_overrides(SETTINGS, RUN)))
    done = subprocess.run(
        [*TORCHRUN, "-m", "gspo", "train", "small.toml", "--folder", "run"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def assert_close(one: Path, two: Path) -> None:
    """Equal up to the rounding of sums."""
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    ours, theirs = weights(one), weights(two)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=5e-5)


def writer(folder: Path) -> int:
    """The process of rank 0: it has the metrics open."""
    target = str(folder / "metrics.jsonl")
    for pid in pids_of("PolicyWorker"):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(file) == target:
                    return pid
            except FileNotFoundError:
                continue
    raise AssertionError(f"nobody writes {target}")


def killing(rank: int, folder: Path) -> Callable[[], object]:
    def kill() -> None:
        first = writer(folder)
        others = [pid for pid in pids_of("PolicyWorker") if pid != first]
        assert len(others) == 1
        os.kill([first, *others][rank], signal.SIGKILL)

    return kill


def test_two_policies_are_two_ranks_of_torchrun_to_the_bit(tmp_path, torchrun):
    shown = Shown()
    done = start_placed(settings(tmp_path / "run", *RUN, *RANKS), shown)
    assert done.is_finished and shown.text.count("step 6/6") == 1
    finished_alike(done.folder, torchrun)
    newest = checkpoints(done.folder / "checkpoints")[0]
    assert (newest / "weights").is_dir() and not damage(newest)
    waited(lambda: not pids_of("PolicyWorker"))


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_dash_nine_of_a_rank_resumes_all_from_their_checkpoint(tmp_path, torchrun, rank):
    folder = tmp_path / "run"
    shown = Shown("step 2/6", killing(rank, folder))
    start_placed(settings(folder, *RUN, *RANKS), shown)
    assert "the policy's process ended (" in shown.text and "again, 1 of 2" in shown.text, shown.text
    assert "again, 2 of 2" not in shown.text and "resuming" in shown.text
    finished_alike(folder, torchrun)


def test_two_policies_and_placed_samplers_and_rewards_are_one_process_up_to_rounding(tmp_path):
    start(settings(tmp_path / "plain", *RUN))
    parts = (("placement.samplers", 1), ("placement.reward_workers", 1))
    done = start_placed(settings(tmp_path / "run", *RUN, *RANKS, *parts), Shown())
    assert_close(tmp_path / "plain", done.folder)
    assert prompts(done.folder) == list(range(4 * STEPS))


def test_one_policy_becomes_two_becomes_one(tmp_path):
    start(settings(tmp_path / "plain", *RUN))
    one = (("steps", 2), ("placement.policies", 1))
    config = settings(tmp_path / "run", *RUN, *RANKS, *one)
    start_placed(config, Shown())
    two = [("placement.policies", 2), ("steps", 4)]
    resume_placed(tmp_path / "run", settings(tmp_path / "run", *RUN, *RANKS).placement, two, Shown())
    assert (checkpoints(tmp_path / "run" / "checkpoints")[0] / "weights").is_dir()
    resume(tmp_path / "run", [("placement.on", ""), ("placement.policies", 1), ("steps", STEPS)])
    assert metrics(tmp_path / "run")[-1] == pytest.approx(metrics(tmp_path / "plain")[-1], rel=1e-4, abs=1e-5)
    assert prompts(tmp_path / "run") == list(range(4 * STEPS))


def test_a_mistake_is_one_line(tmp_path):
    config = settings(tmp_path / "run", *RUN, *RANKS, ("device", "mps"))
    with pytest.raises(ValueError, match=r'device = "mps" has no collectives') as raised:
        start_placed(config, Shown())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    waited(lambda: not pids_of("PolicyWorker"))


def test_ctrl_c_saves_once_and_stops_all(tmp_path):
    config = settings(tmp_path / "run", *RUN, *RANKS, ("steps", 200))
    shown = Shown(" 0/200", lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = start_placed(config, shown)
    assert not stopped.is_finished and shown.text.count("stopped and saved") == 1
    assert prompts(stopped.folder) == list(range(4 * stopped.summary["steps"]))


def test_a_placed_sampler_draws_ahead_of_two_policies(tmp_path):
    ahead = (("max_policy_lag", 1), ("placement.samplers", 1))
    done = start_placed(settings(tmp_path / "run", *RUN, *RANKS, *ahead), Shown())
    lags = [line["policy_lag/max"] for line in metrics(done.folder) if "policy_lag/max" in line]
    assert len(lags) == STEPS and max(lags) == 1 and prompts(done.folder) == list(range(4 * STEPS))
