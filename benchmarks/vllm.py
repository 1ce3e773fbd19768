"""Completion tokens per second of the in-process sampler and of a vLLM server on the CPU, through its HTTP sampler.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/vllm.py [--rounds 5] [--threads 1] [--cases 64x64,512x64]
        [--prompts 4] [--group 8] [--python .venv-vllm/bin/python]

SmolLM2-135M-Instruct in bf16; `--prompts` prompts of equal length (random ids), `--group` completions of each,
temperature 1, no stop token: every completion has all its tokens on both sides. Both return log-probs. The sides take
turns, round by round, so that a busy machine slows both alike; the ratio is the median over rounds, after one warm-up.
Each side has `--threads` threads: torch's here, OMP_NUM_THREADS of the server. Prompts are new in each round, so that
no prefix is cached from the round before. An update is the time of `sync_weights`: saved, paused, loaded, resumed.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from gspo.models import SMOLLM2
from gspo.samplers import InProcess, SampleRequest
from gspo.sampling import Sampling
from gspo.settings import load_config
from gspo.training.parts import build

TARGET = Path(__file__).parent / "out" / "vllm.json"
NOBODY = -1
"""A stop token that is never drawn."""


def requests_of(case: str, arguments: argparse.Namespace, turn: int) -> list[SampleRequest]:
    prompt_tokens, longest = (int(x) for x in case.split("x"))
    draw = np.random.default_rng(turn)
    return [
        SampleRequest(
            prompt_ids=tuple(draw.integers(100, 40_000, prompt_tokens).tolist()),
            n=arguments.group,
            seed=0,
            step=turn,
            prompt_id=i,
            sampling=Sampling(max_completion_tokens=longest),
        )
        for i in range(arguments.prompts)
    ]


def started(arguments: argparse.Namespace, port: int) -> subprocess.Popen[bytes]:
    words = ["serve", SMOLLM2, "--port", str(port), "--python", arguments.python, "--max-model-len", "1024"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    log = TARGET.with_suffix(".tmp").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "gspo", *words], stdout=log, stderr=log, start_new_session=True, env=environment
    )
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
            return process
        except httpx.TransportError:
            if process.poll() is not None:
                raise SystemExit(f"the server did not start: see {log.name}") from None
            time.sleep(1)


def measure(case: str, sides: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.rounds + 1):
        requests = requests_of(case, arguments, turn)
        for name, sampler in sides.items():
            began = time.perf_counter()
            groups = sampler.sample(requests)
            took = time.perf_counter() - began
            tokens = sum(len(completion.ids) for group in groups for completion in group)
            assert tokens == arguments.prompts * arguments.group * int(case.split("x")[1])
            if turn:
                seconds[name].append(took)
                print(f"{case} round {turn} {name}: {took:.2f} s, {tokens / took:.0f} tokens/s", flush=True)
    ratios = [here / there for here, there in zip(seconds["in-process"], seconds["vLLM"], strict=True)]
    return {
        "completion_tokens": tokens,
        "seconds": seconds,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "tokens_per_second": {name: tokens / statistics.median(taken) for name, taken in seconds.items()},
    }


def updates(parts: Any, rounds: int) -> list[float]:
    taken = []
    for version in range(1, rounds + 1):
        began = time.perf_counter()
        parts.sampler.sync_weights(parts.policy, version)
        taken.append(time.perf_counter() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", default="64x64,512x64", help="prompt x completion")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="of the environment that has vLLM")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    TARGET.parent.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = started(arguments, port)
    try:
        words = ["--model", SMOLLM2, "--sampler.name", "vllm", "--sampler.url", f"http://127.0.0.1:{port}"]
        parts = build(load_config(None, words))
        parts.sampler.sync_weights(parts.policy, 0)
        sides = {"in-process": InProcess(parts.policy.network, [NOBODY], 0), "vLLM": parts.sampler}
        parts.sampler.stop_ids = ()
        cases = {case: measure(case, sides, arguments) for case in arguments.cases.split(",")}
        taken = updates(parts, arguments.rounds)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    result = {
        "cases": cases,
        "update_seconds": taken,
        "rows": arguments.prompts * arguments.group,
        "threads": arguments.threads,
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    TARGET.write_text(json.dumps(result, indent=1))
    table = Table(title="vLLM on the CPU against the in-process sampler (ratio: in-process / vLLM, median of rounds)")
    for column in ("prompt x completion", "in-process tokens/s", "vLLM tokens/s", "ratio"):
        table.add_column(column)
    for case, measured in cases.items():
        rates = measured["tokens_per_second"]
        table.add_row(case, f"{rates['in-process']:.0f}", f"{rates['vLLM']:.0f}", f"{measured['ratio']:.2f}")
    Console(width=130).print(table)
    print(f"a weight update: {statistics.median(taken):.2f} s")


if __name__ == "__main__":
    main()
