"""A real vLLM server in the care of what Ray's processes run, without Ray: `make test-vllm`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from real_vllm import PYTHON, STARTS, free_port, gaps, move, wave
from test_leash import is_alive, waited

from gspo.sampling import Sampling
from gspo.settings import load_config
from gspo.training.parts import build

pytestmark = pytest.mark.vllm
KEEPER = """
import os, sys, time
from gspo.placement.servers import Charge, ServerActor
from gspo.samplers.vllm_command import Asked
port, python, deadline = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
asked = Asked(model="tiny", host="127.0.0.1", port=port, python=python, flags=("--max-model-len", "256"))
keeper = ServerActor(Charge(asked=asked, name="server", home=os.getcwd(), restarts=1, deadline=deadline))
keeper.ready()
while True:
    print(keeper.said(), end="", flush=True)
    time.sleep(0.5)
"""


def group_of(port: int) -> list[int]:
    """The server at a port, first, and all that it started."""
    leader, members = 0, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
        except (FileNotFoundError, ProcessLookupError):
            continue
        members.setdefault(group, []).append(int(folder.name))
        if f"--port\0{port}\0".encode() in line and b"leash.py" not in line and group == int(folder.name):
            leader = group
    return sorted(members.get(leader, []), key=lambda pid: pid != leader)


def test_it_is_kept_up_and_does_not_outlive_its_keeper(tmp_path):
    """kill -9 of the server in the middle of a wave, then of its keeper."""
    port = free_port()
    words = [sys.executable, "-c", KEEPER, str(port), PYTHON, str(STARTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        keeper = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    said = lambda: (tmp_path / "log").read_text()  # noqa: E731
    try:
        waited(lambda: "is up" in said() or keeper.poll() is not None, STARTS)
        sampler = ("--sampler.name", "vllm", "--sampler.url", f"http://127.0.0.1:{port}", "--sampler_rows", "4")
        parts = build(load_config(None, ["--model", "tiny", *sampler]), report=lambda text: None)
        move(parts)
        parts.sampler.sync_weights(parts.policy, 7)
        requests = wave(Sampling(temperature=1.5, max_completion_tokens=40), parts.policy.network.vocabulary)
        came = parts.sampler.sample_each(requests)
        found = dict([next(came)])
        first = group_of(port)
        assert len(first) > 1  # vLLM's engine is a process of its own
        os.kill(first[0], signal.SIGKILL)
        found |= dict(came)
        groups = [found[i] for i in range(len(requests))]
        assert {c.policy_version for group in groups for c in group} == {7}
        assert gaps(parts, requests, groups).max() < 2e-5
        waited(lambda: said().count("is up") == 2)
        assert "server ended (exit code -9): again, 1 of 1" in said()
        waited(lambda: not any(is_alive(pid) for pid in first))
        second = group_of(port)
        assert len(second) > 1 and second[0] != first[0]
    finally:
        keeper.kill()
        keeper.wait()
    waited(lambda: not any(is_alive(pid) for pid in second))
