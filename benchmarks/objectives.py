"""Every objective and every advantage estimator of the library learns the embedded task: `make record-objectives`.

All from the same weights. The lists are the library's own; estimators are tried under GRPO. What one needs beside its
paper's constants is in `SETTINGS`. Finished runs are skipped, an interrupted one goes on, one that diverges is recorded
as such. Writes docs/records/objectives.json, the tables in docs/results.md, and a curve for each,
docs/images/papers/NAME.png.
"""

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import (
    ADDITION,
    ROOT,
    alone,
    over_seeds,
    percent,
    points_of,
    put_table,
    read_metrics,
    rounded,
    run_or_failure,
    started_model,
)
from figures import band, grid, label, save, smooth

from gspo.advantages import Advantage
from gspo.config import Checkpoints, ColdStart, RunConfig
from gspo.objectives import Objective
from gspo.policies.master import AdamW
from gspo.settings import to_table, validate
from gspo.training.run import read_summary

TINY = replace(
    ADDITION,
    steps=40,
    optimizer=AdamW(lr=3e-4),
    checkpoints=Checkpoints(every=1000, save_rollouts_every=1000),
)
"""Every run, but for objective and seed."""

ON_POLICY = {"updates_per_step": 1, "prompts_per_step": 16, "steps": 160, "evaluation.every": 40}
"""As many updates on as many completions, each on rollouts of its own: for what takes them as the policy's own."""

SETTINGS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"objective.max_length": 6, "advantage": "group_mean"},
    "abc_grpo": {"advantage": "group_mean"},
    "reinforce": {**ON_POLICY, "advantage": "rloo"},
    "opo": ON_POLICY,
}
"""What the runs of an objective or estimator set beside `TINY`: fields without a default, its paper's other half."""

NEED_DATA = ("a_star",)
"""Estimators that read a column which the embedded task does not have."""


def names_in(union: Any) -> tuple[str, ...]:
    """The names that a recipe may give where this union stands."""
    return tuple(member.name for member in typing.get_args(typing.get_args(union)[0]))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/objectives")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    settings: dict[str, dict[str, Any]] = field(default_factory=lambda: SETTINGS)
    objectives: tuple[str, ...] = names_in(Objective)
    estimators: tuple[str, ...] = tuple(name for name in names_in(Advantage) if name not in NEED_DATA)
    seeds: tuple[int, ...] = (1, 2, 3)


def config_of(plan: Plan, name: str, seed: int) -> RunConfig:
    """The settings of one run: `TINY`, the objective (or GRPO with the estimator), and its line of `SETTINGS`."""
    chosen = {"objective": {"name": name}} if name in plan.objectives else {"objective": "grpo", "advantage": name}
    table = to_table(replace(plan.tiny, seed=seed)) | chosen
    for key, value in plan.settings.get(name, {}).items():
        *parents, last = key.split(".")
        inner = table
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return validate(table, f"settings of {name}")


def run_of(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The figures of one finished run; of one that diverged, why and how far it came."""
    config = config_of(plan, name, seed)
    model, _ = started_model(replace(plan.tiny, seed=seed), plan.runs / f"start-seed{seed}")
    folder = plan.runs / f"{name}-seed{seed}"
    config = replace(config, name=folder.name, folder=str(folder), model=model, cold_start=ColdStart())

    failure = run_or_failure(config, folder)
    lines = read_metrics(folder)
    traced = [line for line in lines if "reward" in line]
    clipped = [line["clip/token_share"] for line in traced if "clip/token_share" in line]
    return {
        "failure": failure,
        "steps": [line["step"] for line in traced],
        "reward": [line["reward"] for line in traced],
        "held_out_steps": [line["step"] for line in lines if "eval/accuracy" in line],
        "held_out": [line["eval/accuracy"] for line in lines if "eval/accuracy" in line],
        "clipped": float(np.mean(clipped)) if clipped else 0.0,
        "updates": config.steps * config.updates_per_step * config.epochs,
        "seconds": 0.0 if failure else read_summary(folder)["seconds"],
    }


def over_runs(plan: Plan, name: str) -> dict[str, Any]:
    """One objective or estimator over its seeds."""
    runs = [run_of(plan, name, seed) for seed in plan.seeds]
    config = config_of(plan, name, plan.seeds[0])
    return {
        "settings": plan.settings.get(name, {}),
        "objective": to_table(config)["objective"],
        "advantage": config.advantage.name if config.objective.traits.reads_advantage else "none",
        "lr": config.optimizer.lr,
        "updates": runs[0]["updates"],
        "held_out": over_seeds([run["held_out"][-1] for run in runs]),
        "gain": over_seeds([run["held_out"][-1] - run["held_out"][0] for run in runs]),
        "reward": over_seeds([float(np.mean(run["reward"][-max(len(run["reward"]) // 4, 1) :])) for run in runs]),
        "clipped": over_seeds([run["clipped"] for run in runs]),
        "failures": [run["failure"] for run in runs if run["failure"]],
        "runs": runs,
    }


def draw(name: str, runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean and range over seeds: sampled reward, and exact match on held-out sums."""
    figure, axes = grid(1, 1, 5.0, 2.6)
    axis = axes[0, 0]
    steps = min((run["steps"] for run in runs), key=len)
    checks = min((run["held_out_steps"] for run in runs), key=len)
    rewards = [smooth(run["reward"][: len(steps)], 3) for run in runs]
    band(axis, steps, rewards, color="#d1641b", label="sampled reward, T = 1")
    scores = [run["held_out"][: len(checks)] for run in runs]
    band(axis, checks, scores, color="#1f6fb4", marker="o", ms=3, label="held out, greedy")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7, loc="upper left")
    label(axis, f"{name}: two-digit sums, {len(runs)} seeds", "step (rollout batch)", "exact match")
    save(figure, path, dpi=110)


def table(found: dict[str, dict[str, Any]], kind: str) -> str:
    """The figures as Markdown, the best first; the difference is to runs from the same weights."""
    other = "advantage" if kind == "objective" else "objective"
    heads = (
        kind,
        other,
        "updates",
        "held out, by seed",
        "less GRPO, points",
        "reward, last quarter",
        "clipped tokens",
    )
    rows = [heads, ["---"] * len(heads)]
    for name, part in sorted(found.items(), key=lambda item: -item[1]["held_out"]["mean"]):
        beside = part["advantage"] if kind == "objective" else part["objective"]["name"]
        seeds = ", ".join(f"{100 * seed:.1f}" for seed in part["held_out"]["seeds"])
        diverged = f" ({len(part['failures'])} diverged)" if part["failures"] else ""
        held_out = f"{100 * part['held_out']['mean']:.1f} % ({seeds}){diverged}"
        clipped = f"{100 * part['clipped']['mean']:.2g} %" if part["clipped"]["mean"] else "none"
        reward = f"{100 * part['reward']['mean']:.1f} %"
        minus = points_of(part["less_grpo"]) if any(part["less_grpo"]["seeds"]) else ""
        rows.append((name, beside, str(part["updates"]), held_out, minus, reward, clipped))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def paired(part: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """Held-out accuracy of one less the other's, seed by seed."""
    pairs = zip(part["held_out"]["seeds"], against["held_out"]["seeds"], strict=True)
    return over_seeds([one - other for one, other in pairs])


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, pictures and tables."""
    torch.set_num_threads(1)
    with alone(plan.runs):
        found = {
            kind: {name: over_runs(plan, name) for name in names}
            for kind, names in (("objective", plan.objectives), ("estimator", plan.estimators))
        }
    for part in (*found["objective"].values(), *found["estimator"].values()):
        part["less_grpo"] = paired(part, found["objective"]["grpo"])
    starts = [json.loads((plan.runs / f"start-seed{s}" / "cold-start.json").read_text()) for s in plan.seeds]
    runs = [run for parts in found.values() for part in parts.values() for run in part["runs"]]
    record = {
        "command": "make record-objectives",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "start": over_seeds([start["accuracy"] for start in starts]),
        "objectives": found["objective"],
        "estimators": found["estimator"],
        "machine_seconds": sum(made["seconds"] for made in (*runs, *starts)),
    }
    target = plan.docs / "records" / "objectives.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rounded(record, 5), indent=1))
    for kind, parts in found.items():
        for name, part in parts.items():
            draw(name, part["runs"], plan.docs / "images" / "papers" / f"{name}.png")
        shown = table(parts, kind)
        put_table(plan.docs / "results.md", f"{kind}s", shown)
        print(shown)
    print(f"start: {percent(record['start'])}; {record['machine_seconds'] / 60:.1f} min")
    return record


if __name__ == "__main__":
    main()
