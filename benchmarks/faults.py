"""kill -9 of each part of a run, at random moments: what is lost.

    make record-faults

Runs of the tiny model whose sampler, reward worker and policy are Ray's processes; whose sampler is a process beside
the policy; whose sampler is a vLLM server; whose policy is two ranks under torchrun. Run i has seed i and is killed
once, after a time drawn evenly over the seconds that the same run takes undisturbed. Somebody starts a killed server
again, on its port, and resumes a run that a killed rank has ended (begins it again, where there is no checkpoint yet).

Counted from the saved rollouts: prompts lost, and prompts trained twice. The final weights are compared with those of
the undisturbed run of the same seed, the final reward with the span of all undisturbed runs.

What is finished stands in docs/records/faults.json; the record goes on where it stopped. `--python`: vLLM's own.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from rich.console import Console as Terminal
from safetensors.torch import load_file

from gspo.config import RunConfig
from gspo.placement.cluster import LOCAL
from gspo.placement.run import start_placed
from gspo.settings import to_table, validate, write_toml
from gspo.sinks import Console
from gspo.training.run import start

TARGET = Path(__file__).parents[1] / "docs" / "records" / "faults.json"
STEPS, PROMPTS = 20, 8
DEADLINE = 120.0
CASES = {
    "Ray sampler": "ray::SamplerActor",
    "Ray reward worker": "ray::RewardActor",
    "policy in Ray": "ray::PolicyWorker",
    "sampler in a process": "spawn_main",
    "vLLM server": "",
    "rank under torchrun": "\0-u\0-m\0gspo\0",
}
"""What is killed, and what its command line has in it (the server is known without)."""
STARTS = 600.0
"""Seconds that a server may take to start."""
RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gspo")


def is_placed(case: str) -> bool:
    return CASES[case].startswith("ray::")


def config(folder: Path, seed: int, case: str, url: str) -> RunConfig:
    samplers = {
        "sampler in a process": {"sampler": {"name": "process"}},
        "vLLM server": {"sampler": {"name": "vllm", "url": url, "timeout": 60.0, "deadline": STARTS}},
    }
    small = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 128}
    return validate(
        {
            "folder": str(folder),
            "seed": seed,
            "model": "tiny",
            "tiny": {} if url else small,  # a server has the model as it comes
            "threads": 1,
            "steps": STEPS,
            "prompts_per_step": PROMPTS,
            "group_size": 8,
            "updates_per_step": 2,
            "sampling": {"max_completion_tokens": 12},
            "rewards": [{"name": "length", "options": {"target_tokens": 4}}],
            "optimizer": {"lr": 1e-3},
            "evaluation": {"every": 0, "prompts": 100, "temperature": 1.0},
            "checkpoints": {"every": 1, "keep_rollouts": 0},
            "trackers": [],
            **samplers.get(case, {}),
            "placement": {
                "on": "local" if is_placed(case) else "",
                "policy_cpus": 0.5,
                "sampler_cpus": 0.5,
                "reward_workers": 1,
                "reward_cpus": 0.5,
                "deadline": DEADLINE,
            },
        }
    )


def descendants_with(words: str) -> list[int]:
    """Processes under this one with these words in their command line."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[pid] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = []
    for pid, line in lines.items():
        above = parents[pid]
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        if above == os.getpid() and words in line:
            found.append(pid)
    return found


def kill_one(words: str, number: int) -> bool:
    """Of the processes with these words: the one of this number, counted round."""
    found = sorted(descendants_with(words))
    if found:
        os.kill(found[number % len(found)], signal.SIGKILL)
    return bool(found)


class Killer:
    """Strikes `seconds` after the run has said where its folder is (never: 0), again and again until it has hit."""

    def __init__(self, strike: Callable[[], bool], seconds: float) -> None:
        self.strike, self.seconds = strike, seconds
        self.text, self.has_hit = "", False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        self.text += text
        if self.seconds and self._thread is None and "run folder:" in self.text:
            self._thread = threading.Thread(target=self._wait)
            self._thread.start()

    def _wait(self) -> None:
        if self._over.wait(self.seconds):
            return
        while not self.has_hit and not self._over.wait(0.02):
            self.has_hit = self.strike()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


@dataclass
class Server:
    """vLLM, started by `gspo serve` on a port, and again whenever it has ended."""

    python: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ("serve", "tiny", "--port", str(self.port), "--python", self.python, "--max-model-len", "256")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gspo", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            try:
                httpx.get(f"{self.url}/health", trust_env=False).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise SystemExit(f"no vLLM server within {STARTS:g} s; try it: gspo serve tiny --python {self.python}")

    def kill(self) -> bool:
        """All its processes at once."""
        if self.process is None or self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return True

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                if self.process is not None and self.process.poll() is not None:
                    self.start()

        self.start()
        self.wait()
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.kill()


def by_ranks(settings: RunConfig, killer: Killer) -> None:
    """The run on two ranks; gone on with, or begun again, for as long as it ends early."""
    folder = Path(settings.folder)
    recipe = folder.with_suffix(".toml")
    recipe.write_text(write_toml(to_table(settings)))
    for _ in range(5):
        is_begun = any(folder.glob("checkpoints/step_*"))
        if not is_begun:
            shutil.rmtree(folder, ignore_errors=True)
        words = ("resume", str(folder)) if is_begun else ("train", str(recipe))
        with subprocess.Popen(
            [sys.executable, *RANKS, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                killer(line)
        if process.returncode == 0:
            return
    raise SystemExit(f"{folder} did not come to its end:\n{killer.text[-2000:]}")


def prompts(folder: Path) -> list[int]:
    """Every prompt that was trained; once per group of a step."""
    found: list[int] = []
    for path in sorted(folder.glob("rollouts/*.parquet")):
        found += dict.fromkeys(row["prompt_id"] for row in pq.read_table(path).to_pylist())
    return found


def run_once(case: str, seed: int, seconds: float, folder: Path, server: Server | None) -> dict[str, Any]:
    """One run, killed after `seconds` where that is above 0."""
    is_served = case == "vLLM server"
    assert server is not None or not is_served
    strike = server.kill if server is not None and is_served else partial(kill_one, CASES[case], seed)
    killer = Killer(strike, seconds)
    settings = config(folder, seed, case, server.url if server is not None and is_served else "")
    began = time.monotonic()
    try:
        if settings.placement.is_set:
            start_placed(settings, killer)
        elif case == "rank under torchrun":
            by_ranks(settings, killer)
        else:
            terminal = Terminal(file=_Text(killer))
            start(settings, console=Console(STEPS, plain=True, terminal=terminal))
    finally:
        killer.end()
    trained, summary = prompts(folder), json.loads((folder / "summary.json").read_text())
    return {
        "case": case,
        "seed": seed,
        "killed_after": seconds,
        "was_killed": killer.has_hit,
        "seconds": time.monotonic() - began,
        "training_seconds": summary["seconds"],
        "lost": len(set(range(STEPS * PROMPTS)) - set(trained)),
        "repeated": len(trained) - len(set(trained)),
        "reward": summary["after"]["reward"],
        "folder": str(folder),
    }


class _Text:
    def __init__(self, show: Callable[[str], None]) -> None:
        self.write, self.encoding = show, "utf-8"

    def flush(self) -> None: ...
    def isatty(self) -> bool:
        return False


def same_weights(a: Path, b: Path) -> bool:
    left, right = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def recorded() -> dict[str, Any]:
    if TARGET.is_file():
        return json.loads(TARGET.read_text())
    return {
        "command": "make record-faults",
        "steps": STEPS,
        "prompts_per_step": PROMPTS,
        "deadline": DEADLINE,
        "runs": [],
    }


def missing(record: dict[str, Any], runs: int, cases: list[str]) -> list[tuple[int, str]]:
    """(seed, case) that the record does not have yet."""
    done = {(run["seed"], run["case"]) for run in record["runs"]}
    return [(seed, case) for seed in range(runs) for case in cases if (seed, case) not in done]


def make(record: dict[str, Any], wanted: list[tuple[int, str]], work: Path, server: Server | None) -> None:
    """The runs, into the record."""
    draw = random.Random(len(record["runs"]))
    undisturbed: dict[tuple[str, int], dict[str, Any]] = {}
    for seed, case in wanted:
        kind = ("Ray" if is_placed(case) else case, seed)
        if kind not in undisturbed:
            undisturbed[kind] = run_once(case, seed, 0.0, work / f"quiet-{seed}-{case.replace(' ', '-')}", server)
        quiet = undisturbed[kind]
        killed: dict[str, Any] = {"was_killed": False}
        attempt = 0
        while not killed["was_killed"]:  # a run may end before its time
            attempt += 1
            after = max(0.01, draw.random() * quiet["training_seconds"])
            folder = work / f"killed-{seed}-{case.replace(' ', '-')}-{attempt}"
            killed = run_once(case, seed, after, folder, server)
        killed |= {
            "same_weights": same_weights(Path(quiet["folder"]), Path(killed["folder"])),
            "undisturbed_seconds": quiet["seconds"],
            "undisturbed_reward": quiet["reward"],
        }
        killed.pop("folder")
        record["runs"].append(killed)
        TARGET.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{case}, seed {seed}: {killed}", flush=True)


def table(record: dict[str, Any]) -> str:
    """One line for each case; rewards are held against the undisturbed runs of the same model."""
    lines = [
        "| killed | runs | lost prompts | repeated prompts | seconds lost, mean (most) | final weights equal "
        "| final reward within |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        runs = [run for run in record["runs"] if run["case"] == case]
        if not runs:
            continue
        alike = [run for run in record["runs"] if (run["case"] == "vLLM server") == (case == "vLLM server")]
        low, high = (of(run["undisturbed_reward"] for run in alike) for of in (min, max))
        late = [run["seconds"] - run["undisturbed_seconds"] for run in runs]
        lines.append(
            f"| {case} | {len(runs)} | {sum(run['lost'] for run in runs)} | {sum(run['repeated'] for run in runs)} "
            f"| {sum(late) / len(late):.0f} ({max(late):.0f}) | {sum(run['same_weights'] for run in runs)} "
            f"| {sum(low <= run['reward'] <= high for run in runs)} ({low:.3f} .. {high:.3f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5, help="of each case")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    args = parser.parse_args()
    record = recorded()
    wanted = missing(record, args.runs, args.cases)
    work = Path(tempfile.mkdtemp(prefix="gspo-faults-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        if any(is_placed(case) for _, case in wanted):
            import ray

            ray.init(**LOCAL, num_cpus=4, log_to_driver=False, logging_level="ERROR")
            stack.callback(ray.shutdown)
        server = None
        if any(case == "vLLM server" for _, case in wanted):
            server = Server(args.python, free_port())
            stack.enter_context(server.kept_up())
        make(record, wanted, work, server)
    print(table(record))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
