"""iGRPO (2602.09000) against plain groups at equal sampled completions, on sums: `make record-drafts`.

Four arms: GRPO and GSPO with 8 completions per prompt, and both on 4 refinements behind the best of 4 drafts. All from
the same weights: the cold start shows sums behind a draft too (without such rows a refinement's prompt is like nothing
that a model trained from scratch has seen), and every arm of a seed starts from that one saved model. Held-out sums are
asked as at inference, single-shot: greedy, and no draft.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/drafts.json, docs/images/drafts.png and the
table in docs/results.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import (
    ADDITION,
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
from figures import Axes, band, grid, label, points, save, smooth

from gspo.collectors.draft_then_refine import DraftConfig
from gspo.config import Checkpoints, ColdStart, CollectorConfig, RunConfig
from gspo.objectives import GRPO, GSPO
from gspo.policies.master import AdamW
from gspo.training.run import read_summary

PLAIN = CollectorConfig()
DRAFTS = CollectorConfig(drafts=DraftConfig(number=4, template="{draft} {prompt}"))
"""Half of the group, as in the paper; the template in characters that the tiny model has ("052 17+35=")."""

TINY = replace(
    ADDITION, steps=60, optimizer=AdamW(lr=3e-4), checkpoints=Checkpoints(every=1000, save_rollouts_every=1000)
)
"""Every run, but for arm and seed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of spending the completions."""

    objective: GRPO | GSPO
    collector: CollectorConfig = PLAIN
    base: str = ""
    """The arm with the same objective on plain groups, which this one is compared with."""
    color: str


ARMS = {
    "grpo": Arm(objective=GRPO(clip_low=0.2, clip_high=0.27), color="#d1641b"),
    "igrpo": Arm(objective=GRPO(clip_low=0.2, clip_high=0.27), collector=DRAFTS, base="grpo", color="#8c2d04"),
    "gspo": Arm(objective=GSPO(clip_low=3e-4, clip_high=4e-4), color="#1f6fb4"),
    "igrpo-gspo": Arm(objective=GSPO(clip_low=3e-4, clip_high=4e-4), collector=DRAFTS, base="gspo", color="#08306b"),
}
NAMES = {"grpo": "GRPO", "igrpo": "iGRPO", "gspo": "GSPO", "igrpo-gspo": "iGRPO over GSPO"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/drafts")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


# ---- the runs


def start_of(plan: Plan, seed: int) -> tuple[str, dict[str, Any]]:
    """The model that every arm of a seed starts from, and how it came about."""
    return started_model(replace(plan.tiny, seed=seed, collector=DRAFTS), plan.runs / f"start-seed{seed}")


def run_of(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The figures of one finished run."""
    folder = plan.runs / f"{name}-seed{seed}"
    config = replace(
        plan.tiny,
        seed=seed,
        name=folder.name,
        folder=str(folder),
        model=start_of(plan, seed)[0],
        objective=ARMS[name].objective,
        collector=ARMS[name].collector,
        cold_start=ColdStart(),
    )
    finished_run(config)
    lines = read_metrics(folder)
    steps = [line for line in lines if "reward" in line]
    checks = [line for line in lines if "eval/accuracy" in line]
    # Refinements are what the arm trains; its drafts are counted by the collector itself.
    trained = config.prompts_per_step * config.trained_per_prompt
    sampled = np.cumsum([trained + line.get("drafts/sampled", 0.0) for line in steps])
    return {
        "sampled": sampled.tolist(),
        "reward": [line["reward"] for line in steps],
        "entropy": [line["entropy"] for line in steps],
        "draft": [line["drafts/reward"] for line in steps if "drafts/reward" in line],
        "best_draft": [line["drafts/best_reward"] for line in steps if "drafts/best_reward" in line],
        "held_out_steps": [line["step"] for line in checks],
        "held_out": [line["eval/accuracy"] for line in checks],
        "seconds_per_step": float(np.median([line["step_time"] - line.get("time/evaluate", 0.0) for line in steps])),
        "seconds": read_summary(folder)["seconds"],
    }


def middle(values: list[float]) -> float:
    """Mean over the middle third of a run."""
    third = len(values) // 3
    return float(np.mean(values[third : len(values) - third]))


def last(values: list[float]) -> float:
    """Mean over the last sixth of a run."""
    return float(np.mean(values[-max(len(values) // 6, 1) :]))


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with intervals."""
    out = {
        "sampled": over_seeds([run["sampled"][-1] for run in runs]),
        "held_out": over_seeds([run["held_out"][-1] for run in runs]),
        "held_out_mean": over_seeds([float(np.mean(run["held_out"])) for run in runs]),
        "reward_last": over_seeds([last(run["reward"]) for run in runs]),
        "entropy_middle": over_seeds([middle(run["entropy"]) for run in runs]),
        "seconds_per_step": over_seeds([run["seconds_per_step"] for run in runs]),
    }
    if runs[0]["best_draft"]:
        out["draft_last"] = over_seeds([last(run["draft"]) for run in runs])
        out["best_draft_last"] = over_seeds([last(run["best_draft"]) for run in runs])
    return out


def paired(part: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """One arm less the other, seed by seed: both started from the same weights."""
    names = ("held_out", "held_out_mean", "entropy_middle")
    return {
        name: over_seeds([a - b for a, b in zip(part[name]["seeds"], against[name]["seeds"], strict=True)])
        for name in names
    }


# ---- picture, table, record


def draw(record: dict[str, Any], path: Path) -> None:
    figure, axes = grid(1, 4, 15.6, 3.6)
    accuracy, entropy, draft, minus = axes[0]
    for name, arm in ARMS.items():
        runs = record["runs"][name]
        style = {"color": arm.color, "label": NAMES[name], "ls": "--" if arm.base else "-"}
        along = range(1, len(runs[0]["reward"]) + 1)
        band(accuracy, runs[0]["held_out_steps"], [run["held_out"] for run in runs], **style)
        band(entropy, along, [smooth(run["entropy"], 5) for run in runs], **style)
        if arm.base:
            band(draft, along, [smooth(run["best_draft"], 5) for run in runs], **style)
            style = {"color": arm.color, "label": f"{NAMES[name]}, mean draft", "ls": ":"}
            band(draft, along, [smooth(run["draft"], 5) for run in runs], **style)
            draw_difference(minus, runs, record["runs"][arm.base], color=arm.color, label=NAMES[name])
    minus.axhline(0, color="0.4", lw=0.8)
    label(accuracy, "held out, greedy, no draft", "step", "exact match")
    label(entropy, "entropy of the trained completions", "step", "nats per token, 5 steps")
    label(draft, "drafts", "step", "mean reward, 5 steps")
    label(minus, "drafts less plain groups, same seed", "step", "held out, points")
    for axis in axes[0]:
        axis.legend(fontsize=7)
    save(figure, path)


def draw_difference(axis: Axes, runs: list[dict[str, Any]], base: list[dict[str, Any]], **style: Any) -> None:
    """Held-out accuracy less that of plain groups: mean, and 95 % interval over seeds."""
    gaps = 100 * np.array([np.subtract(a["held_out"], b["held_out"]) for a, b in zip(runs, base, strict=True)])
    points(axis, runs[0]["held_out_steps"], [over_seeds(column) for column in gaps.T], fmt="o-", ms=3, **style)


def table(record: dict[str, Any]) -> str:
    """The arms as Markdown; differences are to the same objective on plain groups, from the same weights."""
    heads = (
        "", "completions sampled", "held out, greedy", "less plain groups, points", "mean over the run, points",
        "best draft (mean draft)", "entropy, middle third", "seconds per step",
    )  # fmt: skip
    rows: list[Any] = [heads, ["---"] * len(heads)]
    rows.append(["start", "", percent(record["start"]), *[""] * 5])
    for name in ARMS:
        part = record["arms"][name]
        minus = part.get("less_base")
        entropy = part["entropy_middle"]
        best = ""
        if "best_draft_last" in part:
            best = f"{100 * part['best_draft_last']['mean']:.1f} % ({100 * part['draft_last']['mean']:.1f} %)"
        rows.append(
            [
                NAMES[name],
                f"{part['sampled']['mean']:,.0f}",
                percent(part["held_out"]),
                points_of(minus["held_out"]) if minus else "",
                points_of(minus["held_out_mean"]) if minus else "",
                best,
                f"{entropy['mean']:.3f} [{entropy['low']:.3f}, {entropy['high']:.3f}]",
                f"{part['seconds_per_step']['mean']:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and table."""
    torch.set_num_threads(1)
    with alone(plan.runs):
        # Seed by seed, so that an unfinished record has whole comparisons.
        made = {(name, seed): run_of(plan, name, seed) for seed in plan.seeds for name in ARMS}
        starts = [start_of(plan, seed)[1] for seed in plan.seeds]
    runs = {name: [made[name, seed] for seed in plan.seeds] for name in ARMS}
    arms = {name: summed_up(found) for name, found in runs.items()}
    for name, arm in ARMS.items():
        if arm.base:
            arms[name]["less_base"] = paired(arms[name], arms[arm.base])
    record = {
        "command": "make record-drafts",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "start": over_seeds([start["accuracy"] for start in starts]),
        "start_steps": [start["supervised_steps"] for start in starts],
        "arms": arms,
        "runs": runs,
        "machine_seconds": sum(part["seconds"] for part in (*made.values(), *starts)),
        "versions": read_summary(plan.runs / f"grpo-seed{plan.seeds[0]}")["versions"],
    }
    draw(record, plan.docs / "images" / "drafts.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "drafts", record, table(record))
    return record


if __name__ == "__main__":
    main()
