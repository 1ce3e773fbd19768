"""Seconds per GSPO step: TRL's GRPOTrainer against gspo's own training loop, side by side in one process.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/step.py [--case tiny] [--steps 7] [--threads 1]

Cases: `tiny`, 32 prompts x 8 completions of at most 8 tokens by the embedded Qwen3 (0.8 M parameters), float32;
`smollm2-64` and `smollm2-512`, 8 prompts of so many tokens x 8 completions of at most 64 by SmolLM2-135M-Instruct,
bf16 (TRL's AdamW then works in bf16, gspo's on float32 masters). A step is cut into 4 mini-batches with one AdamW
update each; clip 3e-4/4e-4, no KL, temperature 1. Both sides start from the same saved weights and read the same
prompts in the same order with the same reward function. They take turns: TRL trains, and in its callback after every
fourth update gspo takes its step, so that a busy machine slows both alike.

The timed regions, whole steps on both sides:
- TRL: `GRPOTrainer.train()` from the end of one fourth update to the end of the next: fetching prompts, generating,
  reward, advantages, old log-probs, 4 forward-backward passes and updates, its metrics. Logging, saving, evaluation,
  trackers and gradient checkpointing (on by default, and slower here) are off.
- gspo, with its default settings: `train_steps`, what `gspo train` runs, from its
  call to its record: sampling, reward, advantages, old log-probs, 4 updates, metrics, and as its users get by default
  the rollout and ledger files and metrics.jsonl. Also reported without those two files. Evaluation and checkpoints
  are off; the live display and TensorBoard are not there.

Two things that gspo does by default are not left to decide the number:
- Rows of advantage 0 skip the network. The headline's reward is a hash of prompt and completion in 0..1, which gives
  practically every row an advantage; the share of rows trained is reported. `--reward exact` is the task's own.
- Old log-probs are the sampler's where they agree with the policy's (`old_logprobs = "auto"`). "gspo, policy" takes
  turns too: it always computes them by a pass of their own, as TRL does.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import gspo.sinks
from gspo.config import RunConfig
from gspo.models import SMOLLM2, TINY
from gspo.settings import load_config
from gspo.sinks import JsonlSink, Record
from gspo.training.folder import RunFolder
from gspo.training.loop import train_steps
from gspo.training.parts import Given, Parts, build, export_model
from gspo.training.run import cold_start
from gspo.training.state import TrainState

OUT = Path(__file__).parent / "out"
UPDATES, LR = 4, 1e-6  # so small that lengths do not drift apart


@dataclass(frozen=True)
class Case:
    prompts: int
    group: int
    tokens: int
    dtype: str
    model: str
    prompt_tokens: int = 0
    """Length of every prompt; 0 takes the task's own."""


CASES = {
    "tiny": Case(32, 8, 8, "float32", TINY),
    "smollm2-64": Case(8, 8, 64, "bfloat16", SMOLLM2, 64),
    "smollm2-512": Case(8, 8, 64, "bfloat16", SMOLLM2, 512),
}


def spread(completions: list[str], prompts: list[str], **columns: list) -> list[float]:
    """A number in 0..1 from prompt and text: every group has a spread, so every row is trained."""
    return [zlib.crc32(f"{p}{c}".encode()) / 2**32 for p, c in zip(prompts, completions, strict=True)]


def exact(completions: list[str], answer: list[str], **columns: list) -> list[float]:
    return [float(c.strip() == a) for c, a in zip(completions, answer, strict=True)]


REWARDS: dict[str, Callable] = {"spread": spread, "exact": exact}


@dataclass
class Side:
    """What was measured of one side, a list entry per step; the warm-up step is left out."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    completion_tokens: list[int] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def last(self) -> dict[str, Any]:
        """The newest step's entries."""
        return {name: values[-1] for name, values in vars(self).items() if values}

    def add(self, entries: dict[str, Any]) -> None:
        """A step measured in an earlier call."""
        for name, value in entries.items():
            getattr(self, name).append(value)

    def summary(self) -> dict[str, Any]:
        tokens = statistics.mean(self.completion_tokens)
        median = statistics.median(self.seconds)
        names = sorted({name for phase in self.phases for name in phase})
        return {
            "median": median,
            "all": self.seconds,
            "cpu_median": statistics.median(self.cpu_seconds),
            "completion_tokens_per_step": tokens,
            "tokens_per_second": tokens / median,
            "phases": {n: statistics.median(phase.get(n, 0.0) for phase in self.phases) for n in names},
        }


class Kept:
    """Measured steps of all sides in a file, so that the calls of a long case add up; without one, nowhere."""

    def __init__(self, path: Path | None, sides: list[Side]) -> None:
        self.path, self.sides = path, sides
        for line in path.read_text().splitlines() if path and path.is_file() else ():
            for side, entries in zip(sides, json.loads(line), strict=True):
                side.add(entries)

    def add(self) -> None:
        """The newest step of every side."""
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps([side.last() for side in self.sides]) + "\n")


def settings(arguments: argparse.Namespace, **changes: Any) -> RunConfig:
    case = CASES[arguments.case]
    words = {
        "steps": 1,
        "model": case.model,
        "prompts_per_step": case.prompts,
        "group_size": case.group,
        "updates_per_step": UPDATES,
        "dtype": case.dtype,
        "device": "cpu",
        "threads": arguments.threads,
        "sampling.temperature": 1.0,
        "sampling.max_completion_tokens": case.tokens,
        "optimizer.lr": LR,
        "evaluation.every": 0,
        "evaluation.prompts": 0,
        "checkpoints.save_rollouts_every": 1,
        "cold_start.steps": 0,
        **changes,
    }
    return load_config(None, [word for key, value in words.items() for word in (f"--{key}", json.dumps(value))])


def write_prompts(tokenizer: Any, tokens: int, count: int, path: Path) -> None:
    """Prompts of random common words, each of just so many tokens when it is read again."""
    draw = random.Random(0)
    words = [
        "river",
        "house",
        "light",
        "green",
        "old",
        "time",
        "stone",
        "water",
        "name",
        "line",
        "hand",
        "year",
        "thing",
    ]
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        text = " ".join(draw.choice(words) for _ in range(tokens))
        text = tokenizer.decode(tokenizer(text)["input_ids"][:tokens])
        if len(tokenizer(text)["input_ids"]) == tokens:
            rows.append({"prompt": text, "answer": ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_weights(arguments: argparse.Namespace, folder: Path) -> None:
    """The weights that both sides load: random, or after the recipe's cold start."""
    config = settings(arguments, **({"cold_start.steps": 600} if arguments.start == "cold" else {}))
    parts = build(config, report=lambda line: None)
    if config.cold_start.steps:
        console = gspo.sinks.Console(1, title="cold start")
        cold_start(parts, console, lambda: False)
        console.close()
    export_model(parts, folder)


class Last:
    """A sink that keeps the last record and when it came: the end of gspo's step."""

    def write(self, record: Record) -> None:
        self.metrics, self.at, self.cpu_at = record.metrics, time.perf_counter(), time.process_time()

    def close(self) -> None: ...


class Ours:
    """gspo's side: one `train_steps` call per turn, going on from the state of the last."""

    def __init__(self, arguments: argparse.Namespace, weights: Path, folder: Path, old_logprobs: str) -> None:
        data = weights.parent / "prompts.jsonl"
        own = {"data.path": str(data), "data.held_out_prompts": 1} if data.exists() else {}
        config = settings(arguments, model=str(weights), old_logprobs=old_logprobs, **own)
        self.parts: Parts = build(config, Given(rewards=(REWARDS[arguments.reward],)), report=lambda line: None)
        self.state, self.side, self.folder, self.last = TrainState(), Side(), RunFolder(folder), Last()
        self.sinks = [JsonlSink(self.folder.metrics), self.last]

    def turn(self, is_measured: bool) -> None:
        parts = replace(self.parts, config=replace(self.parts.config, steps=self.state.step + 1))
        started, cpu_started = time.perf_counter(), time.process_time()
        self.state = train_steps(parts, self.state, None, self.folder, self.sinks)
        if not is_measured:
            return
        metrics = self.last.metrics
        self.side.seconds.append(self.last.at - started)
        self.side.cpu_seconds.append(self.last.cpu_at - cpu_started)
        config = self.parts.config
        completions = config.prompts_per_step * config.group_size
        self.side.completion_tokens.append(round(metrics["completions/mean_length"] * completions))
        phases = {n.removeprefix("time/"): v for n, v in metrics.items() if n.startswith("time/")}
        self.side.phases.append({**phases, "rows_share": metrics["updates/rows_share"]})


def train_theirs(arguments: argparse.Namespace, weights: Path, ours: list[Ours]) -> Side:
    """TRL trains `steps` + 1 steps; after each of them every gspo side takes a turn.

    Steps that an earlier call measured and kept (`--pairs`) come first.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    side, total, case = Side(), arguments.steps + 1, CASES[arguments.case]
    kept = Kept(arguments.pairs, [side, *(one.side for one in ours)])
    parts = ours[0].parts
    rows = [row for _, row in parts.source.next_rows(0, case.prompts * total)]
    lengths: list[int] = []

    def reward(completion_ids: list[list[int]], **columns: list) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return REWARDS[arguments.reward](**columns)

    class TakeTurns(TrainerCallback):
        def begin(self) -> None:
            gc.collect()
            self.started, self.cpu_started = time.perf_counter(), time.process_time()

        def on_train_begin(self, args, state, control, **kwargs):
            self.begin()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % UPDATES:
                return
            seconds, cpu_seconds = time.perf_counter() - self.started, time.process_time() - self.cpu_started
            is_measured = state.global_step > UPDATES
            if is_measured:
                side.seconds.append(seconds)
                side.cpu_seconds.append(cpu_seconds)
                side.completion_tokens.append(lengths[-1])
            for one in ours:
                gc.collect()
                one.turn(is_measured)
            if is_measured:
                turns = ", ".join(f"{one.side.seconds[-1]:.2f}" for one in ours)
                print(f"step {len(side.seconds)}: TRL {seconds:.2f} s, gspo {turns} s", flush=True)
                kept.add()
            self.begin()

    config = GRPOConfig(
        output_dir=str(weights.parent / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        beta=0.0,
        temperature=1.0,
        num_generations=case.group,
        per_device_train_batch_size=case.prompts * case.group // UPDATES,
        gradient_accumulation_steps=1,
        steps_per_generation=UPDATES,
        max_steps=total * UPDATES,
        max_completion_length=case.tokens,
        shuffle_dataset=False,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(weights, dtype=getattr(torch, case.dtype)),
        processing_class=AutoTokenizer.from_pretrained(weights),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        callbacks=[TakeTurns()],
    )
    torch.set_num_threads(arguments.threads)
    trainer.train()
    return side


def report(result: dict[str, Any]) -> None:
    table = Table(title="Seconds per GSPO step (medians; ratio: TRL / that row)")
    for column in ("", "wall s", "ratio", "CPU s", "ratio", "completion tokens/step", "tokens/s", "rows trained"):
        table.add_column(column, justify="left" if not column else "right")
    trl = result["trl"]
    for name, row in (
        (f"TRL {result['versions']['trl']}", trl),
        ("gspo", result["gspo"]),
        ("gspo, rollout files not counted", result["gspo_without_files"]),
        *([("gspo, policy's old log-probs", result["gspo_policy"])] if "gspo_policy" in result else []),
    ):
        share = row["phases"].get("rows_share", 1.0)
        table.add_row(
            name,
            f"{row['median']:.3f}",
            f"{trl['median'] / row['median']:.2f}",
            f"{row['cpu_median']:.3f}",
            f"{trl['cpu_median'] / row['cpu_median']:.2f}",
            f"{row['completion_tokens_per_step']:.0f}",
            f"{row['tokens_per_second']:.0f}",
            f"{share:.0%}",
        )
    console = Console(width=130)
    console.print(table)
    phases = {name: f"{seconds:.3f}" for name, seconds in result["gspo"]["phases"].items() if name != "rows_share"}
    console.print("gspo by phase, s:", phases)


def without_files(side: Side) -> Side:
    """gspo's step less the phase that writes rollouts and ledger."""
    save = [phase["save"] for phase in side.phases]
    return replace(
        side,
        seconds=[a - b for a, b in zip(side.seconds, save, strict=True)],
        cpu_seconds=[a - b for a, b in zip(side.cpu_seconds, save, strict=True)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=7, help="measured steps per side, after one warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", choices=("untrained", "cold"), default="untrained")
    parser.add_argument("--reward", choices=tuple(REWARDS), default="spread")
    parser.add_argument("--case", choices=tuple(CASES), default="tiny")
    parser.add_argument("--pairs", type=Path, help="file that keeps measured steps: calls add up")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    target = arguments.out or OUT / ("step.json" if arguments.case == "tiny" else f"step-{arguments.case}.json")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_weights(arguments, folder / "weights")
        if case.prompt_tokens:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder / "weights")
            count = case.prompts * (arguments.steps + 1) + 1
            write_prompts(tokenizer, case.prompt_tokens, count, folder / "prompts.jsonl")
        # In bf16 the sampler's noise is wider than the band: "auto" is "policy" there.
        choices = ("auto", "policy") if case.dtype == "float32" else ("auto",)
        ours = [Ours(arguments, folder / "weights", folder / name, name) for name in choices]
        trl = train_theirs(arguments, folder / "weights", ours)
    auto = ours[0].side
    result = {
        "ratio": statistics.median(trl.seconds) / statistics.median(auto.seconds),
        "trl": trl.summary(),
        "gspo": {**auto.summary(), "old_logprobs": ours[0].state.old_logprobs},
        "gspo_without_files": without_files(auto).summary(),
        **({"gspo_policy": ours[1].side.summary()} if len(ours) > 1 else {}),
        "threads": arguments.threads,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("gspo", "trl", "torch", "transformers", "accelerate")},
        },
        "settings": {
            "case": arguments.case, "updates": UPDATES, "lr": LR, **vars(case),
            "steps": len(trl.seconds), "start": arguments.start, "reward": arguments.reward,
            "layout": ours[0].parts.config.layout, "machine": platform.machine(),
        },
    }  # fmt: skip
    report(result)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {target.name}: ratio {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
