"""kill -9 of each part of a run, at random moments: what is lost.

    make record-faults

Runs of the tiny model whose sampler, reward worker and policy are Ray's processes, and runs whose sampler is a process
beside the policy. Run i has seed i and is killed once, after a time drawn evenly over the seconds that the same run
takes undisturbed. Counted from the saved rollouts: prompts lost, and prompts trained twice. The final weights are
compared with those of the undisturbed run of the same seed, the final reward with the span of all undisturbed runs.

What is finished stands in docs/records/faults.json; the record goes on where it stopped.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from rich.console import Console as Terminal
from safetensors.torch import load_file

from gspo.config import RunConfig
from gspo.placement.cluster import LOCAL
from gspo.placement.run import start_placed
from gspo.settings import validate
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
}
"""What is killed, and what its command line has in it."""


def config(folder: Path, seed: int, case: str) -> RunConfig:
    is_placed = CASES.get(case, "").startswith("ray::")
    return validate(
        {
            "folder": str(folder),
            "seed": seed,
            "model": "tiny",
            "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 128},
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
            **({} if is_placed else {"sampler": {"name": "process"}}),
            "placement": {
                "on": "local" if is_placed else "",
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


class Killer:
    """Kills a process `seconds` after the run has said where its folder is."""

    def __init__(self, words: str, seconds: float) -> None:
        self.words, self.seconds = words, seconds
        self.text, self.began, self.killed = "", 0.0, 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        self.text += text
        if self.words and self._thread is None and "run folder:" in self.text:
            self._thread = threading.Thread(target=self._wait)
            self._thread.start()

    def _wait(self) -> None:
        if self._over.wait(self.seconds):
            return
        while not self._over.wait(0.02):
            for pid in descendants_with(self.words)[:1]:
                os.kill(pid, signal.SIGKILL)
                self.killed = pid
                return

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


def prompts(folder: Path) -> list[int]:
    """Every prompt that was trained; once per group of a step."""
    found: list[int] = []
    for path in sorted(folder.glob("rollouts/*.parquet")):
        found += dict.fromkeys(row["prompt_id"] for row in pq.read_table(path).to_pylist())
    return found


def run_once(case: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One run, killed after `seconds` where that is above 0."""
    killer = Killer(CASES[case] if seconds else "", seconds)
    settings = config(folder, seed, case)
    began = time.monotonic()
    try:
        if settings.placement.is_set:
            done: Any = start_placed(settings, killer)
        else:
            terminal = Terminal(file=_Text(killer))
            done = start(settings, console=Console(STEPS, plain=True, terminal=terminal))
    finally:
        killer.end()
    trained = prompts(done.folder)
    return {
        "case": case,
        "seed": seed,
        "killed_after": seconds,
        "was_killed": bool(killer.killed),
        "seconds": time.monotonic() - began,
        "training_seconds": done.summary["seconds"],
        "lost": len(set(range(STEPS * PROMPTS)) - set(trained)),
        "repeated": len(trained) - len(set(trained)),
        "reward": done.summary["after"]["reward"],
        "folder": str(done.folder),
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


def make(runs: int, work: Path) -> dict[str, Any]:
    """All runs that the record does not have yet."""
    record = recorded()
    draw = random.Random(len(record["runs"]))
    undisturbed: dict[tuple[bool, int], dict[str, Any]] = {}
    for seed in range(runs):
        for case in CASES:
            if any(run["case"] == case and run["seed"] == seed for run in record["runs"]):
                continue
            kind = (CASES[case].startswith("ray::"), seed)
            if kind not in undisturbed:
                undisturbed[kind] = run_once(case, seed, 0.0, work / f"quiet-{seed}-{case}")
            quiet = undisturbed[kind]
            killed: dict[str, Any] = {"was_killed": False}
            attempt = 0
            while not killed["was_killed"]:  # a run may end before its time
                attempt += 1
                after = max(0.01, draw.random() * quiet["training_seconds"])
                killed = run_once(case, seed, after, work / f"killed-{seed}-{case}-{attempt}")
            killed |= {
                "same_weights": same_weights(Path(quiet["folder"]), Path(killed["folder"])),
                "undisturbed_seconds": quiet["seconds"],
                "undisturbed_reward": quiet["reward"],
            }
            killed.pop("folder")
            record["runs"].append(killed)
            TARGET.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{case}, seed {seed}: {killed}", flush=True)
    return record


def table(record: dict[str, Any]) -> str:
    rewards = [run["undisturbed_reward"] for run in record["runs"]]
    low, high = min(rewards), max(rewards)
    lines = [
        "| killed | runs | lost prompts | repeated prompts | seconds lost, mean (most) | final weights equal "
        f"| final reward in {low:.3f} .. {high:.3f} |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        runs = [run for run in record["runs"] if run["case"] == case]
        if not runs:
            continue
        late = [run["seconds"] - run["undisturbed_seconds"] for run in runs]
        lines.append(
            f"| {case} | {len(runs)} | {sum(run['lost'] for run in runs)} | {sum(run['repeated'] for run in runs)} "
            f"| {sum(late) / len(late):.0f} ({max(late):.0f}) | {sum(run['same_weights'] for run in runs)} "
            f"| {sum(low <= run['reward'] <= high for run in runs)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5, help="of each case")
    args = parser.parse_args()
    ray.init(**LOCAL, num_cpus=4, log_to_driver=False, logging_level="ERROR")
    work = Path(tempfile.mkdtemp(prefix="gspo-faults-"))
    try:
        print(table(make(args.runs, work)))
    finally:
        ray.shutdown()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
