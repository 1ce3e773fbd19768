"""DPO against GRPO and GSPO for images drawn token by token (after 2505.17017), on digits: `make record-images`.

Every arm of a seed starts from one model, which imitated real digits, and gets the same number of sampled images and
of updates: GRPO and GSPO on groups of eight; DPO on the best and the worst of each eight, drawn anew in every step, or
all drawn once from the first policy ("offline", as preference data usually are). The reward is a weak judge or a strong
one; what is reported is a rule that nothing trains on, for prompts as in training (in domain), combinations that no
training row had, and prompts with their words in another order.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/images.json, docs/images/images.png and the
table in docs/results.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import (
    ROOT,
    alone,
    finished_run,
    once,
    over_seeds,
    percent,
    points_of,
    put_record,
    read_metrics,
    started_model,
)
from figures import band, grid, label, save

from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig, Schedule
from gspo.data import DataConfig, load_dataset
from gspo.models import TinyConfig, without_progress_bars
from gspo.objectives import DPO, GRPO, GSPO, Objective
from gspo.policies.config import ImageTokensConfig
from gspo.policies.master import AdamW
from gspo.rewards import RewardConfig
from gspo.sampling import Sampling
from gspo.tasks.digit_images import ALPHABET, HELD_OUT
from gspo.training.evaluate import EVALUATION_STEP
from gspo.training.parts import build
from gspo.training.run import read_summary

TINY = RunConfig(
    threads=1,
    steps=24,
    prompts_per_step=16,
    group_size=8,
    updates_per_step=4,
    policy=ImageTokensConfig(guidance=1.5),
    tiny=TinyConfig(hidden_size=64, layers=3, heads=4, kv_heads=4, intermediate_size=192, alphabet=ALPHABET),
    sampling=Sampling(max_completion_tokens=64),
    schedule=Schedule(kind="linear"),
    data=DataConfig(task="digit_images", held_out_prompts=30, options={"held_out": "in_domain"}),
    cold_start=ColdStart(steps=400, batch=64, lr=2e-3, stop_at=0.3, check_every=50),
    evaluation=Evaluation(every=6, prompts=30, samples=4, temperature=1.0),
    checkpoints=Checkpoints(every=1000, save_rollouts_every=1000),
    trackers=(),
)
"""Every run, but for arm, judge and seed."""
SAMPLES = 16
"""Images of a held-out prompt when a run has ended."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    objective: Objective
    is_offline: bool = False
    """All images are drawn from the first policy, and then trained on in as many updates."""
    lr: float = 3e-4
    """The best of 1e-4, 3e-4 and 1e-3 for held-out prompts in domain, on one seed."""
    color: str


ARMS = {
    "grpo": Arm(objective=GRPO(clip_low=0.2, clip_high=0.27), color="#d1641b"),
    "gspo": Arm(objective=GSPO(clip_low=3e-3, clip_high=4e-3), color="#1f6fb4"),
    "dpo": Arm(objective=DPO(beta=0.1), color="#31a354"),
    "dpo-offline": Arm(objective=DPO(beta=0.1), is_offline=True, lr=1e-4, color="#756bb1"),
}
NAMES = {"grpo": "GRPO", "gspo": "GSPO", "dpo": "DPO, drawn anew", "dpo-offline": "DPO, drawn once"}
JUDGES = ("strong", "weak")
SHOWN = {"in_domain": "in domain", "unseen_pairs": "unseen combinations", "reordered": "words reordered"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/images")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


# ---- the runs


def judged(judge: str) -> tuple[RewardConfig, ...]:
    return (RewardConfig(name="digit_image", label=judge, options={"judge": judge}),)


def start_of(plan: Plan, seed: int) -> tuple[str, dict[str, Any]]:
    return started_model(replace(plan.tiny, seed=seed, rewards=judged("rule")), plan.runs / f"start-seed{seed}")


def config_of(plan: Plan, name: str, judge: str, seed: int) -> RunConfig:
    arm, tiny = ARMS[name], plan.tiny
    folder = plan.runs / f"{name}-{judge}-seed{seed}"
    config = replace(
        tiny,
        seed=seed,
        name=folder.name,
        folder=str(folder),
        model=start_of(plan, seed)[0],
        objective=arm.objective,
        optimizer=AdamW(lr=arm.lr),
        rewards=judged(judge),
        cold_start=ColdStart(),
    )
    if not arm.is_offline:
        return config
    prompts, updates = tiny.steps * tiny.prompts_per_step, tiny.steps * tiny.updates_per_step
    # One rollout batch: a schedule over its updates would end where it begins.
    return replace(
        config, steps=1, prompts_per_step=prompts, updates_per_step=updates, schedule=Schedule(kind="constant")
    )


def run_of(plan: Plan, name: str, judge: str, seed: int) -> dict[str, Any]:
    """The figures of one finished run."""
    config = config_of(plan, name, judge, seed)
    folder = finished_run(config)
    lines = read_metrics(folder)
    steps, checks = [x for x in lines if "reward" in x], [x for x in lines if "eval/accuracy" in x]
    facts = once(folder / "tested.json", lambda: tested(plan, str(folder / "model"), seed, judge))
    scale = plan.tiny.steps if ARMS[name].is_offline else 1
    return {
        "reward": [line["reward"] for line in steps],
        "held_out_steps": [line["step"] * scale for line in checks],
        "held_out": [line["eval/accuracy"] for line in checks],
        "seconds": read_summary(folder)["seconds"],
        **facts,
    }


def tested(plan: Plan, model: str, seed: int, judge: str) -> dict[str, Any]:
    """By kind of held-out prompts: share right by the rule, its score, and that of the judge that was the reward."""
    config = replace(
        plan.tiny, seed=seed, model=model, rewards=(*judged("rule"), *judged(judge)), cold_start=ColdStart()
    )
    with without_progress_bars():
        parts = build(config, report=lambda text: None)
    source = replace(parts.evaluation_source(1.0), group_size=SAMPLES)
    found: dict[str, Any] = {}
    for kind in HELD_OUT:
        rows = load_dataset(replace(config.data, options={"held_out": kind}), seed).held_out
        groups = source.wave(list(enumerate(rows)), EVALUATION_STEP).groups
        drawn = [(rollout, row) for group, row in zip(groups, rows, strict=True) for rollout in group.rollouts]
        found[f"right/{kind}"] = float(np.mean([parts.dataset.is_correct(r.text, row) for r, row in drawn]))
        for place, name in enumerate(("rule", "judge")):
            found[f"{name}/{kind}"] = float(np.mean([rollout.rewards[place] for rollout, _ in drawn]))
    parts.rewards.close()
    return found


def start_tested(plan: Plan, seed: int) -> dict[str, Any]:
    model = start_of(plan, seed)[0]
    path = plan.runs / f"start-seed{seed}" / "tested.json"
    return once(path, lambda: tested(plan, model, seed, JUDGES[0]))


# ---- picture, table, record


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in runs[0] if "/" in name]
    return {name: over_seeds([run[name] for run in runs]) for name in names}


def less(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """a - b by seed: both started from the same weights."""
    return {
        name: over_seeds([x - y for x, y in zip(a[name]["seeds"], b[name]["seeds"], strict=True)])
        for name in a
        if name in b
    }


def draw(record: dict[str, Any], path: Path) -> None:
    figure, axes = grid(1, 3, 12.6, 3.6)
    for axis, judge in zip(axes[0], JUDGES, strict=False):
        for name, arm in ARMS.items():
            runs = record["runs"][f"{name}-{judge}"]
            style = {"color": arm.color, "label": NAMES[name]}
            band(axis, runs[0]["held_out_steps"], [run["held_out"] for run in runs], marker="o", ms=3, **style)
        label(axis, f"{judge} judge as the reward", "step", "right by the rule, in domain")
    axes[0][0].legend(fontsize=7)
    last = axes[0][2]
    for place, (name, arm) in enumerate(ARMS.items()):
        for shift, mark, judge in zip((-0.05, 0.05), "ox", JUDGES, strict=False):
            found = [record["arms"][f"{name}-{judge}"][f"right/{kind}"] for kind in HELD_OUT]
            spread = [[f["mean"] - f["low"] for f in found], [f["high"] - f["mean"] for f in found]]
            where = np.arange(len(HELD_OUT)) + (place - 1.5) * 0.2 + shift
            last.errorbar(where, [f["mean"] for f in found], yerr=spread, fmt=mark, ms=4, color=arm.color)
    last.set_xticks(range(len(HELD_OUT)), [SHOWN[kind] for kind in HELD_OUT], fontsize=7)
    label(last, "at the end (o strong, x weak judge)", "", "right by the rule")
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    kinds = ("in_domain", "unseen_pairs", "reordered")
    heads = [
        "reward",
        "",
        *(f"right, {SHOWN[kind]}" for kind in kinds),
        "rule's score, unseen",
        "judge's score, unseen",
    ]
    rows = [heads, ["---"] * len(heads)]
    start = record["start"]
    rows.append(
        ["", "start", *(percent(start[f"right/{kind}"]) for kind in kinds), percent(start["rule/unseen_pairs"]), ""]
    )
    for judge in JUDGES:
        for name in ARMS:
            found = record["arms"][f"{name}-{judge}"]
            shown = [
                percent(found[key])
                for key in (*(f"right/{k}" for k in kinds), "rule/unseen_pairs", "judge/unseen_pairs")
            ]
            rows.append([judge, NAMES[name], *shown])
        for name in ("dpo", "dpo-offline"):
            gap = record["less_grpo"][f"{name}-{judge}"]
            shown = [
                points_of(gap[key])
                for key in (*(f"right/{k}" for k in kinds), "rule/unseen_pairs", "judge/unseen_pairs")
            ]
            rows.append([judge, f"{NAMES[name]}, less GRPO, points", *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and table."""
    torch.set_num_threads(1)
    pairs = [(name, judge) for judge in JUDGES for name in ARMS]
    with alone(plan.runs):
        # Seed by seed, so that an unfinished record has whole comparisons.
        made = {(*pair, seed): run_of(plan, *pair, seed) for seed in plan.seeds for pair in pairs}
        starts = [start_tested(plan, seed) for seed in plan.seeds]
        cold = [start_of(plan, seed)[1] for seed in plan.seeds]
    runs = {f"{name}-{judge}": [made[name, judge, seed] for seed in plan.seeds] for name, judge in pairs}
    arms = {key: summed_up(found) for key, found in runs.items()}
    record = {
        "command": "make record-images",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "images": plan.tiny.steps * plan.tiny.prompts_per_step * plan.tiny.group_size,
        "start": summed_up(starts),
        "arms": arms,
        "less_grpo": {f"{n}-{j}": less(arms[f"{n}-{j}"], arms[f"grpo-{j}"]) for n, j in pairs if n != "grpo"},
        "runs": runs,
        "machine_seconds": sum(part["seconds"] for part in (*made.values(), *cold)),
        "versions": read_summary(plan.runs / f"grpo-{JUDGES[0]}-seed{plan.seeds[0]}")["versions"],
    }
    draw(record, plan.docs / "images" / "images.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "images", record, table(record))
    return record


if __name__ == "__main__":
    main()
