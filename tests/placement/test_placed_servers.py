"""Servers that Ray's processes keep up: whoever is killed, the run is the undisturbed one and nothing stays behind.

The servers are stand-ins for vLLM (`stand_in_vllm`), which draw the same from the same weights.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from ray_processes import pids_of, waited_pid
from runs import SETTINGS, assert_same_run, metrics, settings
from test_leash import waited
from test_placed_ranks import assert_close
from test_placed_runs import CPUS, RUN, STEPS, Shown, prompts

from gspo.placement.run import resume_placed, start_placed
from gspo.settings import apply_overrides, write_toml

pytestmark = pytest.mark.ray
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Settings of a run with one server; its Python is the stand-in."""
    folder = tmp_path_factory.mktemp("vllm")
    python = folder / "python"
    paths = os.pathsep.join(str(HERE.parent / name) for name in ("servers", "conformance"))
    python.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} {HERE / "stand_in_vllm.py"} "$@"\n')
    python.chmod(0o755)
    return (
        *RUN,
        *CPUS,
        ("placement.on", "local"),
        ("placement.samplers", 0),
        ("placement.servers", 1),
        ("placement.server_cpus", 0.5),
        ("placement.server_python", str(python)),
        ("placement.deadline", 300),
        ("sampler", {"name": "vllm", "shared": str(folder / "shared")}),
    )


@pytest.fixture(scope="module")
def quiet(cluster: None, placed: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    shown = Shown()
    done = start_placed(settings(tmp_path_factory.mktemp("quiet") / "run", *placed), shown)
    assert done.is_finished and "server 0 of 1 starts at http://127.0.0.1:" in shown.text
    assert "server 0 of 1 is up" in shown.text and "again" not in shown.text
    lines = [line for line in metrics(done.folder) if "mismatch/max" in line]
    assert lines and max(line["mismatch/max"] for line in lines) < 1e-4  # its weights are the policy's
    waited(lambda: not standing())
    return done.folder


def standing(words: str = "") -> list[int]:
    """Stand-ins of this checkout and what is beside them, with these words in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(HERE / "stand_in_vllm.py") in line and "leash.py" not in line and words in line:
            found.append(int(folder.name))
    return found


def kill_server() -> None:
    (pid,) = standing("\0serve\0")
    os.kill(pid, signal.SIGKILL)


def kill_keeper() -> None:
    os.kill(waited_pid("ServerActor"), signal.SIGKILL)


def kill_policy() -> None:
    os.kill(waited_pid("PolicyWorker"), signal.SIGKILL)


@pytest.mark.parametrize(
    ("kill", "starts", "line"),
    [
        (kill_server, 2, "server 0 of 1 ended (exit code -9): again, 1 of 2"),
        (kill_keeper, 2, "server 0 of 1 starts at"),
        (kill_policy, 1, "the policy's process ended"),
    ],
)
def test_kill_dash_nine_changes_nothing(tmp_path, quiet, placed, kill: Callable[[], None], starts, line):
    shown = Shown("step 2/6", kill)
    done = start_placed(settings(tmp_path / "run", *placed), shown)
    assert line in shown.text and shown.text.count("starts at") == starts
    addresses = {part.split()[0] for part in shown.text.split("starts at ")[1:]}
    assert len(addresses) == 1  # the port stays
    assert_same_run(done.folder, quiet)
    assert prompts(done.folder) == list(range(4 * STEPS))
    waited(lambda: not standing() and not pids_of("ServerActor"))


def command_lines() -> list[bytes]:
    return [(Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in (*standing(), *pids_of(""))]


def test_a_key_reaches_server_and_policy_and_is_written_nowhere(tmp_path, quiet, placed, monkeypatch):
    """The cluster began without it."""
    from ray._private.worker import _global_node

    key = "sk-Kp3-not-to-be-seen"
    monkeypatch.setenv("GSPO_SERVER_KEY", key)
    lines: list[bytes] = []
    answers: list[int] = []

    def look():
        lines.extend(command_lines())
        url = shown.text.split("starts at ")[1].split()[0]
        answers.append(httpx.get(f"{url}/v1/models", trust_env=False).status_code)

    shown = Shown("step 2/6", look)
    done = start_placed(settings(tmp_path / "run", *placed), shown)
    assert_same_run(done.folder, quiet)
    logs = Path(_global_node.get_session_dir_path()) / "logs"
    files = [path for folder in (done.folder, logs) for path in folder.rglob("*") if path.is_file()]
    assert answers == [401], "the server asks for none"
    assert len(lines) > 3 and not [line for line in lines if key.encode() in line]
    assert len(files) > 10 and not [path for path in files if key.encode() in path.read_bytes()]
    assert key not in shown.text and "is up" in shown.text


def test_two_ranks_ask_two_servers(tmp_path, quiet, placed):
    more = (("placement.policies", 2), ("placement.servers", 2))
    done = start_placed(settings(tmp_path / "run", *placed, *more), Shown())
    assert_close(quiet, done.folder)
    assert prompts(done.folder) == list(range(4 * STEPS))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([("placement.server_python", "/no/python")], "placement.server_python /no/python does not run"),
        ([("placement.server_python", sys.executable)], "has no vLLM: .* name another with placement.server_python"),
        (
            [("placement.server_flags", ["--broken"])],
            r"server 0 of 1: ended \(exit code 1\) before .*no such flag.* \(log",
        ),
    ],
)
def test_a_server_that_does_not_come_is_one_line(tmp_path, placed, changes, line):
    with pytest.raises(ValueError, match=line) as raised:
        start_placed(settings(tmp_path / "run", *placed, *changes), Shown())
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()
    waited(lambda: not standing() and not pids_of("ServerActor"))


@pytest.mark.usefixtures("cluster")
def test_a_server_that_keeps_dying_is_given_up_and_its_run_can_be_resumed(tmp_path, quiet, placed):
    sampler = {**dict(placed)["sampler"], "deadline": 3}
    config = settings(tmp_path / "run", *placed, ("placement.restarts", 0), ("sampler", sampler))
    shown = Shown("step 3/6", kill_server)
    with pytest.raises(ValueError, match=r"the vLLM server at .* waited .*go on with: gspo resume"):
        start_placed(config, shown)
    assert "server 0 of 1 is given up: ended (exit code -9) 1 times in a row" in shown.text
    done = resume_placed(tmp_path / "run", config.placement, (), Shown())
    assert done.is_finished and prompts(done.folder) == list(range(4 * STEPS))
    assert_same_run(done.folder, quiet)


def test_no_server_outlives_the_command(tmp_path, placed):
    """kill -9 of the command, which takes its cluster with it, in the middle of a run."""
    table = apply_overrides(SETTINGS, (*placed, ("steps", 500)))
    (tmp_path / "small.toml").write_text(write_toml(table))
    words = [sys.executable, "-m", "gspo", "train", "small.toml", "--folder", "run"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "CI": "1"}
    with (tmp_path / "log").open("wb") as log:
        command = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    until = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or len(metrics(tmp_path / "run")) < 3:
        assert command.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.1)
    assert len(standing()) == 2
    command.kill()
    command.wait()
    waited(lambda: not standing(), 60)
