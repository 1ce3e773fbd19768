"""GRPO-RM (2511.15256) against cross-entropy on digits, at equal updates on equal images: `make record-representation`.

Every arm of a seed starts from one backbone, pre-trained without labels on all training images, under a head of zeros,
and sees the same labelled images in the same order and the same number of updates; each arm's learning rate is the best
of a small grid on a seed of its own. Afterwards: the head's accuracy, a linear probe and nearest neighbours on the
features (both fitted on the labelled images), on held-out digits and on the same digits rotated, noised and inverted.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/representation.json,
docs/images/representation.png and the table in docs/results.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from torch import nn

from gspo.advantages import Advantage, GroupMean, GroupStd
from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig, Schedule
from gspo.data import DataConfig, rows_at
from gspo.models import TinyConfig
from gspo.objectives import GRPO
from gspo.policies.config import RepresentationConfig
from gspo.policies.master import AdamW, MasterWeights
from gspo.policies.representation import RepresentationModel
from gspo.tasks.digits import VARIANTS, load_images, split, variant
from gspo.training.run import read_summary
from gspo.training.schedule import learning_rate

TINY = RunConfig(
    threads=1,
    steps=40,
    prompts_per_step=128,
    updates_per_step=4,
    epochs=2,
    old_logprobs="sampler",
    policy=RepresentationConfig(),
    objective=GRPO(clip_low=0.2, clip_high=0.2),
    tiny=TinyConfig(hidden_size=64, layers=3, heads=4, kv_heads=4, intermediate_size=192),
    schedule=Schedule(kind="cosine"),
    data=DataConfig(task="digits", held_out_prompts=400, options={"labelled": 400}),
    cold_start=ColdStart(steps=300, batch=128, lr=2e-3),
    evaluation=Evaluation(every=5, prompts=400),
    checkpoints=Checkpoints(every=1000, save_rollouts_every=1000),
    trackers=(),
)
"""Every run, but for arm and seed."""
TUNING_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way of learning from the labels; cross-entropy where it has no policy."""

    policy: RepresentationConfig | None
    advantage: Advantage = field(default_factory=GroupStd)
    color: str


ARMS = {
    "cross-entropy": Arm(policy=None, color="0.3"),
    "grpo-rm": Arm(policy=RepresentationConfig(), color="#d1641b"),
    "without-std": Arm(policy=RepresentationConfig(), advantage=GroupMean(), color="#8c2d04"),
    "pi-old": Arm(policy=RepresentationConfig(weighting="pi_old"), color="#1f6fb4"),
    "accuracy-only": Arm(policy=RepresentationConfig(uniformity=0.0), color="#6a51a3"),
}
NAMES = {
    "cross-entropy": "cross-entropy",
    "grpo-rm": "GRPO-RM (weights 1/C, std)",
    "without-std": "GRPO-RM without std",
    "pi-old": "GRPO-RM, weights pi_old",
    "accuracy-only": "GRPO-RM, accuracy alone",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/representation")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)


# ---- the runs


def start_of(plan: Plan, seed: int) -> tuple[str, dict[str, Any]]:
    return started_model(replace(plan.tiny, seed=seed), plan.runs / f"start-seed{seed}")


def run_of(plan: Plan, name: str, seed: int, lr: float) -> dict[str, Any]:
    """The figures of one arm of one seed, made once."""
    folder = plan.runs / f"{name}-seed{seed}-lr{lr:g}"
    train = plain_run if ARMS[name].policy is None else policy_run
    return once(folder / "tested.json", lambda: train(plan, name, seed, lr, folder))


def policy_run(plan: Plan, name: str, seed: int, lr: float, folder: Path) -> dict[str, Any]:
    arm = ARMS[name]
    assert arm.policy is not None
    config = replace(
        plan.tiny,
        seed=seed,
        name=folder.name,
        folder=str(folder),
        model=start_of(plan, seed)[0],
        policy=arm.policy,
        advantage=arm.advantage,
        optimizer=AdamW(lr=lr),
        cold_start=ColdStart(),
    )
    finished_run(config)
    lines = [line for line in read_metrics(folder) if "eval/accuracy" in line]
    model = RepresentationModel.from_pretrained(folder / "model")
    return {
        "steps": [line["step"] for line in lines],
        "accuracy": [line["eval/accuracy"] for line in lines],
        "seconds": read_summary(folder)["seconds"],
        **tested(plan, model),
    }


def plain_run(plan: Plan, name: str, seed: int, lr: float, folder: Path) -> dict[str, Any]:
    """Cross-entropy on the images of the same steps, as many updates, the same course of the learning rate."""
    began, config = time.perf_counter(), plan.tiny
    model = RepresentationModel.from_pretrained(start_of(plan, seed)[0])
    weights = MasterWeights(model.named_parameters(), AdamW(lr=lr))
    images, target = load_images()
    train, held_out = split(config.data.held_out_prompts)
    train = train[: config.data.options["labelled"]]
    per_step = config.updates_per_step * config.epochs
    accuracy = lambda: share_right(model, images[held_out], target[held_out])  # noqa: E731
    found = {"steps": [0], "accuracy": [accuracy()]}
    for step in range(config.steps):
        rows = train[rows_at(step * config.prompts_per_step, config.prompts_per_step, len(train), seed)]
        for update in range(per_step):
            part = np.array_split(rows, config.updates_per_step)[update % config.updates_per_step]
            logits = model(torch.from_numpy(images[part]))[:, 0]
            nn.functional.cross_entropy(logits, torch.from_numpy(target[part])).backward()
            weights.step(learning_rate(config.schedule, lr, step * per_step + update, per_step, config.steps))
        if (step + 1) % config.evaluation.every == 0:
            found["steps"].append(step + 1)
            found["accuracy"].append(accuracy())
    return {**found, "seconds": time.perf_counter() - began, **tested(plan, model)}


# ---- measuring


@torch.no_grad()
def share_right(model: RepresentationModel, images: np.ndarray, target: np.ndarray) -> float:
    return float((model(torch.from_numpy(images))[:, 0].argmax(dim=-1).numpy() == target).mean())


def tested(plan: Plan, model: RepresentationModel) -> dict[str, Any]:
    """Accuracies on every kind of held-out images: of the head, of a linear probe, of nearest neighbours."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    images, target = load_images()
    train, held_out = split(plan.tiny.data.held_out_prompts)
    train = train[: plan.tiny.data.options["labelled"]]
    with torch.no_grad():
        features: Callable[[np.ndarray], np.ndarray] = lambda x: model.features(torch.from_numpy(x)).numpy()  # noqa: E731
        known, out = features(images[train]), {}
        probe = LogisticRegression(max_iter=3000).fit(known, target[train])
        near = KNeighborsClassifier(5).fit(known, target[train])
        for kind in VARIANTS:
            shown = variant(images[held_out], kind)
            out[f"head/{kind}"] = share_right(model, shown, target[held_out])
            out[f"probe/{kind}"] = float(probe.score(features(shown), target[held_out]))
            out[f"near/{kind}"] = float(near.score(features(shown), target[held_out]))
    return out


MEASURES = [f"{what}/{kind}" for what in ("head", "probe", "near") for kind in VARIANTS]


def best_rate(plan: Plan, name: str) -> float:
    """The learning rate with the highest held-out accuracy of the head, on the tuning seed."""
    return max(plan.rates, key=lambda lr: run_of(plan, name, TUNING_SEED, lr)["head/plain"])


def summed_up(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and differences to cross-entropy of the same seeds."""
    found = {name: over_seeds([run[name] for run in runs]) for name in (*MEASURES, "seconds")}
    found["mean_accuracy"] = over_seeds([float(np.mean(run["accuracy"])) for run in runs])
    gaps = {name: [a[name] - b[name] for a, b in zip(runs, base, strict=True)] for name in MEASURES}
    return {**found, "less_base": {name: over_seeds(values) for name, values in gaps.items()}}


# ---- picture, table, record


def draw(record: dict[str, Any], path: Path) -> None:
    figure, axes = grid(1, 2, 9.2, 3.6)
    left, right = axes[0]
    for place, (name, arm) in enumerate(ARMS.items()):
        runs = record["runs"][name]
        band(left, runs[0]["steps"], [run["accuracy"] for run in runs], color=arm.color, label=NAMES[name])
        found = [record["arms"][name][f"head/{kind}"] for kind in VARIANTS]
        spread = [[f["mean"] - f["low"] for f in found], [f["high"] - f["mean"] for f in found]]
        where = np.arange(len(VARIANTS)) + (place - 2) * 0.15
        right.errorbar(where, [f["mean"] for f in found], yerr=spread, fmt="o", ms=3, color=arm.color)
    left.legend(fontsize=7)
    right.set_xticks(range(len(VARIANTS)), VARIANTS)
    label(left, "held-out digits", "step", "accuracy of the head")
    label(right, "kinds of held-out images, at the end", "", "accuracy of the head")
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    """One row per arm; then the differences to cross-entropy."""
    what = {"head": "head", "probe": "linear probe", "near": "5 nearest"}
    heads = ["", "lr", *(f"{what[key.split('/')[0]]}, {key.split('/')[1]}" for key in MEASURES)]
    rows = [heads, ["---"] * len(heads)]
    for name, found in record["arms"].items():
        rows.append([NAMES[name], f"{record['rates'][name]:g}", *(percent(found[key]) for key in MEASURES)])
    for name, found in list(record["arms"].items())[1:]:
        gaps = [points_of(found["less_base"][key]) for key in MEASURES]
        rows.append([f"{NAMES[name]}, less cross-entropy, points", "", *gaps])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and table."""
    torch.set_num_threads(1)
    with alone(plan.runs):
        rates = {name: best_rate(plan, name) for name in ARMS}
        # Seed by seed, so that an unfinished record has whole comparisons.
        made = {(name, seed): run_of(plan, name, seed, rates[name]) for seed in plan.seeds for name in ARMS}
        starts = [start_of(plan, seed)[1] for seed in plan.seeds]
    runs = {name: [made[name, seed] for seed in plan.seeds] for name in ARMS}
    record = {
        "command": "make record-representation",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "rates": rates,
        "arms": {name: summed_up(found, runs["cross-entropy"]) for name, found in runs.items()},
        "runs": runs,
        "machine_seconds": sum(part["seconds"] for part in (*made.values(), *starts)),
        "versions": read_summary(plan.runs / f"grpo-rm-seed{plan.seeds[0]}-lr{rates['grpo-rm']:g}")["versions"],
    }
    draw(record, plan.docs / "images" / "representation.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "representation", record, table(record))
    return record


if __name__ == "__main__":
    main()
