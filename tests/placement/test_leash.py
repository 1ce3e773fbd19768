"""Nothing that is on a leash stays behind; no Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gspo.placement.servers import Leashed
from gspo.samplers.vllm_command import Command

PARENT = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '500']).pid, flush=True); time.sleep(500)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PARENT}"
STARTER = """
import sys, time
from pathlib import Path
from test_leash import leashed
server = leashed(Path(sys.argv[1]), sys.argv[2])
print(server.pid, flush=True)
time.sleep(500)
"""


def leashed(log: Path, code: str = PARENT) -> Leashed:
    return Leashed(Command(words=[sys.executable, "-c", code], environment=dict(os.environ), version=""), log)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def waited(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def child_said(log: Path) -> int:
    waited(lambda: log.is_file() and log.read_text().endswith("\n"))
    return int(log.read_text().split()[-1])


def test_it_ends_when_told_to(tmp_path):
    server = leashed(tmp_path / "log")
    child = child_said(tmp_path / "log")
    assert is_alive(server.pid) and is_alive(child) and not server.is_over.is_set()
    server.end()
    assert server.code == -signal.SIGTERM and not is_alive(server.pid)
    waited(lambda: not is_alive(child))


def test_its_death_is_heard_and_takes_its_children(tmp_path):
    server = leashed(tmp_path / "log")
    child = child_said(tmp_path / "log")
    os.kill(server.pid, signal.SIGKILL)
    assert server.is_over.wait(10) and server.code == -signal.SIGKILL
    waited(lambda: not is_alive(child))


def test_a_killed_leash_takes_all_with_it(tmp_path):
    server = leashed(tmp_path / "log")
    child = child_said(tmp_path / "log")
    os.kill(parent_of(server.pid), signal.SIGKILL)
    assert server.is_over.wait(10)
    waited(lambda: not is_alive(server.pid) and not is_alive(child))


@pytest.mark.parametrize("code", [PARENT, STUBBORN])
def test_it_ends_with_a_starter_that_is_killed(tmp_path, code):
    log = tmp_path / "log"
    words = [sys.executable, "-c", STARTER, str(log), code]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    starter = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    child = child_said(log)
    starter.kill()
    starter.communicate()
    waited(lambda: not is_alive(pid) and not is_alive(child))
