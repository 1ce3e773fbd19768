"""Whole runs whose parts are in Ray's processes, against the same runs in one."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray_processes import pids_of, waited_pid
from runs import SETTINGS, assert_same_run, metrics, settings
from test_leash import waited

from gspo.placement.run import resume_placed, start_placed
from gspo.settings import apply_overrides, write_toml
from gspo.training.run import start

pytestmark = pytest.mark.ray
STEPS = 6
CPUS = tuple((f"placement.{part}_cpus", 0.5) for part in ("policy", "sampler", "reward"))
PLACED = (("placement.on", "local"), ("placement.reward_workers", 1), *CPUS)
RUN = (("steps", STEPS), ("threads", 1), ("checkpoints.keep_rollouts", 0))


def prompts(folder: Path) -> list[int]:
    """Every prompt of the saved rollouts, in the order of training; once per group of a step."""
    found: list[int] = []
    for path in sorted(folder.glob("rollouts/*.parquet")):
        found += dict.fromkeys(row["prompt_id"] for row in pq.read_table(path).to_pylist())
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    return start(settings(folder, *RUN)).folder


class Shown:
    """What a placed run printed; calls `work` once, at the line that holds `mark`."""

    def __init__(self, mark: str = "", work: Callable[[], object] = lambda: None) -> None:
        self.text, self.mark, self.work, self.is_done = "", mark, work, not mark

    def __call__(self, text: str) -> None:
        self.text += text
        if not self.is_done and self.mark in self.text:
            self.is_done = True
            self.work()


def killing(title: str) -> Callable[[], object]:
    return lambda: os.kill(waited_pid(title), signal.SIGKILL)


def finished_alike(folder: Path, plain: Path) -> None:
    assert_same_run(folder, plain)
    assert prompts(folder) == list(range(4 * STEPS)) == prompts(plain)


@pytest.mark.usefixtures("cluster")
def test_a_placed_run_is_the_plain_one_to_the_bit(tmp_path, plain):
    quiet = Shown()
    done = start_placed(settings(tmp_path / "quiet", *RUN, *PLACED), quiet)
    assert done.is_finished and "step 6/6" in quiet.text and "run folder:" in quiet.text
    finished_alike(done.folder, plain)
    waited(lambda: not any(pids_of(title) for title in ("PolicyWorker", "SamplerActor", "RewardActor")))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("title", ["SamplerActor", "RewardActor"])
def test_kill_dash_nine_beside_the_policy_changes_nothing(tmp_path, plain, title):
    done = start_placed(settings(tmp_path / "run", *RUN, *PLACED), Shown("step 2/6", killing(title)))
    finished_alike(done.folder, plain)


@pytest.mark.usefixtures("cluster")
def test_kill_dash_nine_of_the_policy_resumes_from_its_checkpoint(tmp_path, plain):
    shown = Shown("step 2/6", killing("PolicyWorker"))
    done = start_placed(settings(tmp_path / "policy", *RUN, *PLACED), shown)
    assert "the policy's process ended" in shown.text and "resuming" in shown.text
    finished_alike(done.folder, plain)


@pytest.mark.usefixtures("cluster")
def test_a_policy_that_dies_before_its_first_checkpoint_begins_again(tmp_path, plain):
    timer = threading.Thread(target=killing("PolicyWorker"))
    timer.start()
    shown = Shown()
    done = start_placed(settings(tmp_path / "run", *RUN, *PLACED), shown)
    timer.join()
    assert "again, 1 of 2" in shown.text
    finished_alike(done.folder, plain)


@pytest.mark.usefixtures("cluster")
def test_a_policy_that_keeps_dying_is_one_line_and_its_run_can_be_resumed(tmp_path, plain):
    config = settings(tmp_path / "run", *RUN, *PLACED, ("placement.restarts", 0))
    with pytest.raises(ValueError, match=r"the policy's process ended 1 times .*Go on: gspo resume") as raised:
        start_placed(config, Shown("step 3/6", killing("PolicyWorker")))
    assert "\n" not in str(raised.value)
    done = resume_placed(tmp_path / "run", config.placement, (), Shown())
    finished_alike(done.folder, plain)


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_saves_and_stops(tmp_path, plain):
    config = settings(tmp_path / "run", *RUN, *PLACED, ("steps", 200))
    shown = Shown(" 0/200", lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = start_placed(config, shown)
    assert not stopped.is_finished and "SIGINT: finishing this step" in shown.text and "stopped and saved" in shown.text
    steps = stopped.summary["steps"]
    assert prompts(stopped.folder) == list(range(4 * steps))


@pytest.mark.usefixtures("cluster")
def test_sampling_ahead_in_two_actors_is_never_staler_than_allowed(tmp_path):
    ahead = (("max_policy_lag", 2), ("placement.samplers", 2), ("placement.strategy", "spread"))
    config = settings(tmp_path / "run", *RUN, *PLACED, *ahead)
    done = start_placed(config, Shown("step 2/6", killing("SamplerActor")))
    lags = [line["policy_lag/max"] for line in metrics(done.folder) if "policy_lag/max" in line]
    assert len(lags) == STEPS and max(lags) <= 2 and prompts(done.folder) == list(range(4 * STEPS))


@pytest.mark.usefixtures("cluster")
def test_more_than_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"placement reserves 901.5 CPUs on this machine, which has 8; lower"):
        start_placed(settings(tmp_path / "run", *PLACED, ("placement.sampler_cpus", 900.5)), Shown())
    with pytest.raises(ValueError, match=r"reward .f.: no file"):
        config = settings(tmp_path / "run", *RUN, *PLACED, ("rewards", [{"function": "nowhere.py:f"}]))
        start_placed(config, Shown())


def gspo(*words: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "CI": "1"}
    return subprocess.run(
        [sys.executable, "-m", "gspo", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )


def test_the_command_starts_a_cluster_and_ends_it(tmp_path, plain):
    table = apply_overrides(SETTINGS, (*RUN, *PLACED[1:]))
    (tmp_path / "small.toml").write_text(write_toml(table))
    done = gspo("train", "small.toml", "--on", "local", "--folder", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 6/6" in done.stdout and "model: " in done.stdout
    finished_alike(tmp_path / "run", plain)


def test_no_cluster_at_an_address(tmp_path):
    done = gspo("train", "--on", "ray://127.0.0.1:1", "--folder", "run", folder=tmp_path)
    assert done.returncode == 2 and "refused" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_has_ended(tmp_path, monkeypatch):
    """Its address is where Ray looks for the one that is there."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    done = gspo("train", "--on", "auto", "--folder", "run", folder=tmp_path)
    assert done.returncode == 2 and "ray start --head" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()
