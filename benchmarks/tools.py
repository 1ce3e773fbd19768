"""Questions that need tools, with tools and without: `make record-tools`.

"37*46+85=" of task calculator. With tools: environment calculator answers calls of mul and add, the supervised start
shows them, and the reward is the environment's, 1 for a right answer. Without: no environment, the start shows bare
answers, the reward is exact match. Same model, questions, learning rate and numbers of steps, prompts and completions;
a start ends at `stop_at` of held-out accuracy or after all its supervised steps, which without tools it always needs.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/tools.json, docs/images/tools.png and the
table in docs/results.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from experiment import (
    ROOT,
    alone,
    finished_run,
    over_seeds,
    percent,
    points_of,
    put_record,
    read_metrics,
    started_model,
)
from figures import band, grid, label, save, smooth

from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig
from gspo.envs.config import EnvironmentConfig
from gspo.policies.master import AdamW
from gspo.rewards import RewardConfig
from gspo.settings import load_config, recipe_folder
from gspo.training.run import read_summary

RECIPE = load_config(recipe_folder() / "calculator.toml")
WITH_TOOLS = replace(
    RECIPE,
    threads=1,
    steps=50,
    prompts_per_step=16,
    tiny=replace(RECIPE.tiny, hidden_size=64, layers=3, intermediate_size=192),
    optimizer=AdamW(lr=3e-4),
    cold_start=ColdStart(steps=300, batch=64, lr=3e-3, stop_at=0.3, check_every=25),
    evaluation=Evaluation(every=10, prompts=200),
    checkpoints=Checkpoints(every=1000, keep_rollouts=0),
    trackers=(),
)
"""The recipe with a smaller model, a higher learning rate and half its prompts per step."""
ARMS = {"tools": "with tools", "none": "without"}
COLORS = {"tools": "#1f6fb4", "none": "#d1641b"}


def without_tools(config: RunConfig) -> RunConfig:
    """The same run for a policy that must work out the answer by itself."""
    return replace(
        config,
        data=replace(config.data, options={**config.data.options, "tools": False}),
        environment=EnvironmentConfig(),
        rewards=(RewardConfig(name="exact"),),
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/tools")
    docs: Path = ROOT / "docs"
    config: RunConfig = WITH_TOOLS
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


def run_of(plan: Plan, arm: str, seed: int) -> dict[str, Any]:
    """The figures of one finished run."""
    config = replace(plan.config if arm == "tools" else without_tools(plan.config), seed=seed)
    model, start = started_model(config, plan.runs / f"{arm}-start-seed{seed}")
    folder = plan.runs / f"{arm}-seed{seed}"
    finished_run(replace(config, name=folder.name, folder=str(folder), model=model, cold_start=ColdStart()))

    lines = read_metrics(folder)
    steps = [line for line in lines if "reward" in line]
    checks = [line for line in lines if "eval/accuracy" in line]
    return {
        "supervised_steps": start["supervised_steps"],
        "steps": [line["step"] for line in steps],
        "reward": [line["reward"] for line in steps],
        "calling": [calling_share(path) for path in sorted((folder / "rollouts").glob("step_*.parquet"))],
        "calls": [line.get("environment/tool_calls", 0.0) for line in steps],
        "errors": [line.get("environment/tool_errors", 0.0) for line in steps],
        "held_out_steps": [line["step"] for line in checks],
        "held_out": [line["eval/accuracy"] for line in checks],
        "seconds": {"start": start["seconds"], "run": read_summary(folder)["seconds"]},
    }


def calling_share(path: Path) -> float:
    """Share of a step's rollouts that call a tool: an answer without a call ends a rollout at its first turn."""
    rows = pq.read_table(path, columns=["group", "index", "turns"]).to_pylist()
    turns = {(row["group"], row["index"]): row["turns"] for row in rows}
    return float(np.mean([number > 1 for number in turns.values()]))


def over_runs(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One arm over its seeds; "first" and "last" are means over a quarter of the steps."""
    quarter = max(len(runs[0]["steps"]) // 4, 1)
    early, late = slice(None, quarter), slice(-quarter, None)
    share = lambda run, part: sum(run["errors"][part]) / max(sum(run["calls"][part]), 1e-9)  # noqa: E731
    return {
        "before": over_seeds([run["held_out"][0] for run in runs]),
        "after": over_seeds([run["held_out"][-1] for run in runs]),
        "gain": over_seeds([run["held_out"][-1] - run["held_out"][0] for run in runs]),
        **{
            f"{name}_{where}": over_seeds([float(np.mean(run[name][part])) for run in runs])
            for name in ("reward", "calling", "calls")
            for where, part in (("first", early), ("last", late))
        },
        **{
            f"failed_calls_{where}": over_seeds([share(run, part) for run in runs])
            for where, part in (("first", early), ("last", late))
        },
        "runs": list(runs),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Held-out accuracy, sampled reward, and what is called: mean, and the lowest to the highest seed."""
    figure, axes = grid(1, 3, 11.5, 3.2)
    for arm, name in ARMS.items():
        runs, style = record["arms"][arm]["runs"], {"color": COLORS[arm], "label": name}
        steps = runs[0]["steps"]
        band(axes[0, 0], runs[0]["held_out_steps"], [run["held_out"] for run in runs], marker="o", ms=3, **style)
        band(axes[0, 1], steps, [smooth(run["reward"], 3) for run in runs], **style)
    runs = record["arms"]["tools"]["runs"]
    band(axes[0, 2], steps, [smooth(run["calls"], 3) for run in runs], color="#1f6fb4", label="calls")
    band(axes[0, 2], steps, [smooth(run["errors"], 3) for run in runs], color="#a02c2c", label="failed calls")
    band(axes[0, 2], steps, [smooth(run["calling"], 3) for run in runs], color="#4a8a4a", label="share that calls")
    for axis, title in zip(
        axes.flat, ("held out, greedy", "sampled reward, T = 1", "with tools: per rollout"), strict=True
    ):
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7.5)
        label(axis, title, "step (rollout batch)", "")
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    """The arms as Markdown."""
    arms = record["arms"]
    heads = ["", *ARMS.values()]
    number = lambda found: f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"  # noqa: E731
    span = lambda name, show: [  # noqa: E731
        f"{show(arms[arm][f'{name}_first'])} -> {show(arms[arm][f'{name}_last'])}" for arm in ARMS
    ]
    called = lambda name, show: [span(name, show)[0], ""]  # noqa: E731
    rows = [
        ["held out, before", *(percent(arms[arm]["before"]) for arm in ARMS)],
        ["held out, after", *(percent(arms[arm]["after"]) for arm in ARMS)],
        ["gain, points", *(points_of(arms[arm]["gain"]) for arm in ARMS)],
        ["sampled reward, first -> last quarter", *span("reward", percent)],
        ["rollouts that call a tool", *called("calling", percent)],
        ["calls per rollout", *called("calls", number)],
        ["calls that fail", *called("failed_calls", percent)],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and table."""
    torch.set_num_threads(1)
    with alone(plan.runs):
        arms = {arm: over_runs([run_of(plan, arm, seed) for seed in plan.seeds]) for arm in ARMS}
    seconds = [sum(run["seconds"].values()) for arm in arms.values() for run in arm["runs"]]
    record = {
        "command": "make record-tools",
        "seeds": plan.seeds,
        "steps": plan.config.steps,
        "rollouts_per_step": plan.config.prompts_per_step * plan.config.group_size,
        "lr": plan.config.optimizer.lr,
        "arms": arms,
        "machine_seconds": sum(seconds),
        "versions": read_summary(plan.runs / f"tools-seed{plan.seeds[0]}")["versions"],
    }
    draw(record, plan.docs / "images" / "tools.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "tools", record, table(record))
    return record


if __name__ == "__main__":
    main()
