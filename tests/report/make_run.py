"""A made-up run folder of the addition task, with the shapes and sizes of a real one."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUPS, GROUP_SIZE, UPDATES = 8, 8, 4
CLIP_LOW, CLIP_HIGH = 3e-4, 4e-4

CONFIG = """
model = "tiny"
seed = 0

[objective]
name = "gspo"
clip_low = 3e-4
clip_high = 4e-4

[train]
prompts_per_step = 8
group_size = 8
updates_per_step = 4
lr = 1e-5
"""


def make_run(folder: Path, *, steps: int = 60, every: int = 5) -> Path:
    """Write every file of the contract; rollouts and evaluations `every` so many steps."""
    random = np.random.default_rng(0)
    for name in ("rollouts", "ledger"):
        (folder / name).mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    lines = [{"step": 0, **evaluation(0, random)}]
    for step in range(1, steps + 1):
        evaluated = step % every == 0 or step == steps
        lines.append({"step": step, **training(step, random), **(evaluation(step, random) if evaluated else {})})
        ledger = ledger_rows(step, random)
        pq.write_table(pa.Table.from_pylist(ledger), folder / "ledger" / f"step_{step:06d}.parquet")
        if step == 1 or evaluated:
            rows = rollout_rows(step, ledger, random)
            pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts" / f"step_{step:06d}.parquet")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(summary(steps)))
    return folder


def skill(step: int) -> float:
    return 0.08 + 0.88 / (1 + math.exp(-(step - 25) / 7))


def evaluation(step: int, random: np.random.Generator) -> dict[str, float]:
    accuracy = min(max(skill(step) + random.normal(0, 0.01), 0.0), 1.0)
    greedy = min(accuracy + 0.04, 1.0)
    return {
        "eval/accuracy": accuracy, "eval/reward": accuracy, "eval/greedy_accuracy": greedy, "eval/mean_length": 4.0
    }  # fmt: skip


def training(step: int, random: np.random.Generator) -> dict[str, float | None]:
    noise = lambda scale: float(random.normal(0, scale))  # noqa: E731
    reward = min(max(skill(step) + noise(0.04), 0.0), 1.0)
    clipped = {f"clip_ratio/update_{k}": 0.001 + max(0.09 * k + noise(0.015), 0) for k in range(UPDATES)}
    return {
        "reward": reward, "reward_std": 0.3, "frac_reward_zero_std": abs(reward - 0.5), "rewards/exact/mean": reward,
        "completions/mean_length": 3.6 + noise(0.1), "completions/min_length": 2.0,
        "completions/max_length": 6.0 + (step < 20) * 4, "completions/clipped_ratio": 0.0,
        "clip_ratio/low_mean": 0.06, "clip_ratio/high_mean": 0.08, "clip_ratio/region_mean": 0.14, **clipped,
        "clip/token_share": 0.14, "entropy": 0.12 + 1.1 * math.exp(-step / 18) + noise(0.01), "kl": 0.0,
        "grad_norm": 0.4 + abs(noise(0.1)) + (step == 31) * 1.4, "lr": 1e-5, "loss": noise(1e-3),
        "num_tokens": 640 * step, "tokens_per_second": 5200 + noise(200), "step_time": 1.3,
        "time/sample": 0.55 + abs(noise(0.05)), "time/reward": 0.02, "time/old_logprobs": 0.14,
        "time/update": 0.52 + abs(noise(0.03)), "time/evaluate": 0.3 * (step % 5 == 0), "time/save": 0.02,
        "mismatch/mean": 2e-7 * (1 + abs(noise(0.2))), "mismatch/max": 4e-6 * (1 + abs(noise(0.3))),
        "mismatch/seq_std": 1e-7 * (1 + abs(noise(0.2))), "advantage/abs_mean": 0.6,
        "ratio/seq/mean": None if step == 3 else 1.0,
    }  # fmt: skip


def ledger_rows(step: int, random: np.random.Generator) -> list[dict]:
    rows = []
    for number in range(GROUPS * GROUP_SIZE):
        update = number * UPDATES // (GROUPS * GROUP_SIZE)
        log_ratio = float(random.standard_t(4) * 1.6e-4 * update)
        advantage = float(random.normal())
        bound = "none"
        if log_ratio > CLIP_HIGH and advantage > 0:
            bound = "high"
        if log_ratio < -CLIP_LOW and advantage < 0:
            bound = "low"
        rows.append({
            "step": step, "update": update, "group": number // GROUP_SIZE, "index": number % GROUP_SIZE,
            "length": 4, "log_ratio": log_ratio, "bound": bound, "advantage": advantage,
            "gradient_share": 0.0 if bound != "none" else float(random.uniform(0, 0.12)),
        })  # fmt: skip
    return rows


def rollout_rows(step: int, ledger: list[dict], random: np.random.Generator) -> list[dict]:
    rows, prompt, answer = [], "", ""
    for fate in ledger:
        if fate["index"] == 0:
            a, b = (int(n) for n in random.integers(10, 99, 2))
            prompt, answer = f"{a}+{b}=", str(a + b)
        wrong = str(int(answer) + int(random.integers(1, 12)))
        is_right = fate["advantage"] > 0
        completion = answer if is_right else wrong
        tokens = [*completion, "<eos>"]
        logprobs = [float(-random.exponential(0.3)) for _ in tokens]
        noise = 2e-3 * (fate["update"] > 0)  # nothing has moved before the first update
        moved = [value + fate["log_ratio"] + float(random.normal(0, noise)) for value in logprobs]
        rows.append({
            "step": step, "prompt_id": 17 + fate["group"], "group": fate["group"], "index": fate["index"],
            "prompt": prompt, "completion": completion, "prompt_ids": [1], "completion_ids": list(range(len(tokens))),
            "tokens": tokens, "sampler_logprobs": logprobs, "old_logprobs": logprobs, "logprobs": moved,
            "reward": float(is_right), "reward/exact": float(is_right), "reward/format": 1.0,
            "advantage": fate["advantage"], "finish_reason": "stop", "policy_version": 4 * (step - 1),
            "answer": answer,
        })  # fmt: skip
    return rows


def summary(steps: int) -> dict:
    prompts = [(f"{a}+{b}=", str(a + b)) for a, b in ((47, 85), (12, 30), (99, 64), (58, 7), (71, 29), (33, 48))]
    before = [{"prompt": p, "completion": a[::-1], "answer": a, "reward": 0.0} for p, a in prompts]
    after = [{"prompt": p, "completion": a, "answer": a, "reward": 1.0} for p, a in prompts]
    return {
        "before": {"accuracy": 0.083, "reward": 0.083, "greedy_accuracy": 0.125, "mean_length": 4.2},
        "after": {"accuracy": 0.947, "reward": 0.947, "greedy_accuracy": 0.985, "mean_length": 3.6},
        "seconds": 78.4, "steps": steps, "objective": {"name": "gspo", "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH},
        "model": "tiny (Qwen3, 0.4 M parameters)", "task": "addition", "device": "CPU, 2 threads",
        "versions": {"gspo": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "examples": {"before": before, "after": after},
    }  # fmt: skip
