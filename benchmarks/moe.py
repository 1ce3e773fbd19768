"""A mixture of experts: GRPO and GSPO, each free and with routing replay: `make record-moe`.

The stability claim of 2507.18071, sections 5.3 and 5.4, in small. Four layers of eight experts, two for each token,
learn two-digit sums from one supervised start per seed; arms differ in objective and `policy.routing` alone, at the
learning rate that was best for dense models on this task and at twice that. Then with a sampler in bf16 whose log-probs
are the ratio's denominator, training in float32. And, apart from the runs, what routing alone does to
the ratios: the same tokens under the same weights, by the routes of the old pass and by those of now.

Finished runs are skipped, an interrupted one goes on, one that diverges is recorded as such. Writes
docs/records/moe.json, docs/images/moe.png and the tables in docs/results.md.
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
    once,
    over_seeds,
    percent,
    points_of,
    put_record,
    read_metrics,
    run_or_failure,
    started_model,
)
from figures import band, grid, label, points, save

from gspo.config import Checkpoints, ColdStart, OldLogprobs, RunConfig
from gspo.models import TinyConfig
from gspo.objectives import GRPO, GSPO
from gspo.policies.config import CausalLMConfig
from gspo.policies.master import AdamW
from gspo.training.batch import MiniBatch, assemble, flatten, mini_batches
from gspo.training.experts import share_changed
from gspo.training.loop import estimate
from gspo.training.parts import Parts, build
from gspo.training.run import read_summary
from gspo.training.update import live_rows, prepare, update

TINY = replace(
    ADDITION,
    steps=40,
    tiny=TinyConfig(hidden_size=64, layers=4, intermediate_size=192, experts=8),
    policy=CausalLMConfig(balance_coef=0.001),
    checkpoints=Checkpoints(every=1000, save_rollouts_every=1000),
)
"""Every run, but for arm, rate and seed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    objective: GRPO | GSPO
    routing: Any = "free"
    sampler_dtype: Any = "auto"
    old_logprobs: OldLogprobs = "policy"
    """Of the policy, so that R2 costs nothing more; the sampler's where it computes in bf16."""
    rates: tuple[float, ...] = (3e-4, 6e-4)
    color: str


_GRPO = GRPO(clip_low=0.2, clip_high=0.27)
_GSPO = GSPO(clip_low=3e-4, clip_high=4e-4)
_HALF: dict[str, Any] = {"sampler_dtype": "bfloat16", "old_logprobs": "sampler", "rates": (3e-4,)}

ARMS = {
    "grpo": Arm(objective=_GRPO, color="#d1641b"),
    "grpo-r2": Arm(objective=_GRPO, routing="R2", color="#8c2d04"),
    "grpo-r3": Arm(objective=_GRPO, routing="R3", color="#fdae6b"),
    "gspo": Arm(objective=_GSPO, color="#1f6fb4"),
    "gspo-r2": Arm(objective=_GSPO, routing="R2", color="#08306b"),
    "grpo-bf16": Arm(objective=_GRPO, **_HALF, color="#e377c2"),
    "grpo-r3-bf16": Arm(objective=_GRPO, routing="R3", **_HALF, color="#9467bd"),
    "gspo-bf16": Arm(objective=_GSPO, **_HALF, color="#2ca02c"),
}
NAMES = {
    "grpo": "GRPO",
    "grpo-r2": "GRPO + R2",
    "grpo-r3": "GRPO + R3",
    "gspo": "GSPO",
    "gspo-r2": "GSPO + R2",
    "grpo-bf16": "GRPO, sampler bf16",
    "grpo-r3-bf16": "GRPO + R3, sampler bf16",
    "gspo-bf16": "GSPO, sampler bf16",
}
BASES = {"grpo-r2": "grpo", "grpo-r3": "grpo", "gspo": "grpo", "gspo-r2": "gspo", "grpo-bf16": "grpo",
         "grpo-r3-bf16": "grpo", "gspo-bf16": "gspo"}  # fmt: skip
"""What an arm is compared with, seed by seed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/moe")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    batches: int = 4
    """Rollout batches behind the measurement of routing alone."""


# ---- the runs


def start_of(plan: Plan, seed: int) -> tuple[str, dict[str, Any]]:
    """The model that every arm of a seed starts from, and how it came about."""
    return started_model(replace(plan.tiny, seed=seed), plan.runs / f"start-seed{seed}")


def config_of(plan: Plan, name: str, lr: float, seed: int) -> RunConfig:
    arm, folder = ARMS[name], plan.runs / f"{name}-lr{lr:g}-seed{seed}"
    return replace(
        plan.tiny,
        seed=seed,
        name=folder.name,
        folder=str(folder),
        model=start_of(plan, seed)[0],
        objective=arm.objective,
        policy=replace(plan.tiny.policy, routing=arm.routing, sampler_dtype=arm.sampler_dtype),
        old_logprobs=arm.old_logprobs,
        optimizer=AdamW(lr=lr),
        cold_start=ColdStart(),
    )


def run_of(plan: Plan, name: str, lr: float, seed: int) -> dict[str, Any]:
    """The figures of one run, finished or diverged."""
    config = config_of(plan, name, lr, seed)
    folder = Path(config.folder)
    failure = run_or_failure(config, folder)
    lines = read_metrics(folder)
    steps = [line for line in lines if "experts/changed" in line]
    mean = lambda key: float(np.mean([line[key] for line in steps if key in line] or [0.0]))  # noqa: E731
    layers = sorted({key for line in steps for key in line if key.startswith("experts/changed/layer_")})
    held_out = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
    return {
        "failure": failure,
        "reward": [line["reward"] for line in lines if "reward" in line],
        "held_out_steps": [line["step"] for line in lines if "eval/accuracy" in line],
        "held_out": held_out,
        "is_collapsed": bool(failure) or held_out[-1] < held_out[0],
        "clipped": mean("clip/token_share"),
        "changed": mean("experts/changed"),
        "changed_along": [line["experts/changed"] for line in steps],
        "changed_in_first_update": mean("experts/changed/update_0"),
        "changed_by_layer": [mean(key) for key in layers],
        "token_variance": float(np.mean([line["ratio/token/std"] ** 2 for line in steps] or [0.0])),
        "sequence_variance": float(np.mean([line["ratio/seq/std"] ** 2 for line in steps] or [0.0])),
        "seconds": 0.0 if failure else read_summary(folder)["seconds"],
    }


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with intervals."""
    last = lambda values: float(np.mean(values[-max(len(values) // 6, 1) :]))  # noqa: E731
    names = ("clipped", "changed", "changed_in_first_update", "token_variance", "sequence_variance")
    return {
        "held_out": over_seeds([run["held_out"][-1] for run in runs]),
        "best": over_seeds([max(run["held_out"]) for run in runs]),
        "reward_last": over_seeds([last(run["reward"]) for run in runs]),
        "collapsed": sum(run["is_collapsed"] for run in runs),
        "diverged": sum(bool(run["failure"]) for run in runs),
        **{name: over_seeds([run[name] for run in runs]) for name in names},
    }


# ---- what routing alone does


def routing_alone(plan: Plan, name: str, lr: float, seed: int) -> dict[str, float]:
    """Variances of ratios behind the first mini-batch, token by token and sequence by sequence: as routed now; by the
    routes of the old pass; and of one against the other, which is routing alone. Measured while the arm learns."""

    def measure() -> dict[str, float]:
        parts = build(config_of(plan, name, lr, seed), report=lambda text: None)
        found: list[dict[str, np.ndarray]] = []
        cursor = 0
        for step in range(plan.batches):
            collected = parts.collector.collect(cursor, step)
            cursor = collected.cursor
            advantage, _ = estimate(parts, collected.groups, None, parts.advantage.init())
            samples = flatten(collected.groups, advantage, False)
            rows = mini_batches(samples, parts.config.updates_per_step, seed, step)
            batches = [MiniBatch(samples=some, step=assemble(some, parts.policy.network.device)) for some in rows]
            for number, batch in enumerate(prepare(batches, parts.policy, parts.terms, None, rescore_old=True)):
                if number:
                    found += compared(parts, batch)
                update(parts.policy, batch, parts.terms, lr)
        parts.rewards.close()
        return spread(found)

    return once(plan.runs / f"routing-{name}-lr{lr:g}-seed{seed}.json", measure)


def compared(parts: Parts, batch: MiniBatch) -> list[dict[str, np.ndarray]]:
    """By sequence: token log-ratios as routed now and by the old routes; shares of changed choices, by token."""
    rows = live_rows(batch.step, parts.terms)
    if not rows:
        return []
    step = batch.step.rows(rows)
    scorer: Any = parts.policy.scorer
    now = scorer.logprobs(step)
    told = replace(scorer, routing="R3").logprobs(step)
    out = []
    for i, mask in enumerate(step.mask):
        predicts = len(step.payload.prompt[i]) - 1 + mask.nonzero()[:, 0].numpy()
        changed = share_changed(step.payload.replay[i].experts[predicts], now.replay[i].experts[predicts])
        old = step.old_logprobs[i][mask]
        gaps = {"now": now.logprobs[i][mask] - old, "told": told.logprobs[i][mask] - old}
        out.append({key: gap.double().numpy() for key, gap in gaps.items()} | {"changed": changed.mean(axis=1)})
    return out


def spread(found: list[dict[str, np.ndarray]]) -> dict[str, float]:
    out = {"changed": float(np.concatenate([row["changed"] for row in found]).mean()) if found else 0.0}
    for key in ("now", "told", "routing"):
        gaps = [row["now"] - row["told"] if key == "routing" else row[key] for row in found] or [np.zeros(1)]
        out[f"token_{key}"] = float(np.var(np.exp(np.concatenate(gaps))))
        out[f"sequence_{key}"] = float(np.var([np.exp(gap.mean()) for gap in gaps]))
    return out


# ---- picture, tables, record


def draw(record: dict[str, Any], path: Path) -> None:
    figure, axes = grid(1, 4, 16.4, 3.7)
    low, high, changed, routing = axes[0]
    rates = ARMS["grpo"].rates
    for key, runs in record["runs"].items():
        name, lr = key.split("@")
        arm = ARMS[name]
        style = {"color": arm.color, "label": NAMES[name], "ls": "--" if "bf16" in name else "-"}
        shortest = min((run["held_out_steps"] for run in runs), key=len)
        axis = low if float(lr) == rates[0] else high
        band(axis, shortest, [run["held_out"][: len(shortest)] for run in runs], **style)
        if arm.routing == "free" and "bf16" not in name:
            length = min(len(run["changed_along"]) for run in runs)
            style |= {"label": f"{NAMES[name]}, {lr}", "ls": "-" if float(lr) == rates[0] else ":"}
            band(changed, range(1, length + 1), [run["changed_along"][:length] for run in runs], **style)
    for place, level in enumerate(("token", "sequence")):
        for shift, (key, found) in enumerate(record["routing"].items()):
            x = [place * 3 + i + 0.12 * shift for i in range(2)]
            values = [found[f"{level}_now"], found[f"{level}_routing"]]
            name, lr = key.split("@")
            style = {"color": ARMS[name].color, "fmt": "o" if float(lr) == rates[0] else "s", "ms": 4}
            points(routing, x, values, label=None if place else f"{NAMES[name]}, {lr}", **style)
    routing.set_xticks([0.2, 1.2, 3.2, 4.2], ["token:\nall", "routing\nalone", "sequence:\nall", "routing\nalone"])
    routing.set_yscale("log")
    label(low, f"held out, greedy, rate {rates[0]:g}", "step", "exact match")
    label(high, f"held out, greedy, rate {rates[-1]:g}", "step", "exact match")
    label(changed, "changed experts behind mini-batch 1", "step", "share of choices")
    label(routing, "spread of the ratios", "", "variance")
    for axis in axes[0]:
        axis.legend(fontsize=6)
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    """The arms; then what routing alone does."""
    heads = ["", "rate", "held out, greedy", "less its base, points", "ends below its start", "reward, last sixth",
             "clipped tokens", "changed experts", "variance of r", "variance of s"]  # fmt: skip
    rows = [heads, ["---"] * len(heads)]
    rows.append(["start", "", percent(record["start"]), *[""] * 7])
    for key, found in record["arms"].items():
        name, lr = key.split("@")
        minus = found.get("less_base")
        rows.append(
            [
                NAMES[name],
                lr,
                percent(found["held_out"]),
                f"{points_of(minus)} ({NAMES[BASES[name]]})" if minus else "",
                f"{found['collapsed']} of {len(record['seeds'])}",
                f"{100 * found['reward_last']['mean']:.1f} %",
                f"{100 * found['clipped']['mean']:.2g} %",
                f"{100 * found['changed']['mean']:.2g} %",
                f"{found['token_variance']['mean']:.2g}",
                f"{found['sequence_variance']['mean']:.2g}",
            ]
        )
    second = [
        "behind mini-batch 1, first rollout batches",
        "rate",
        "changed experts",
        *(f"{what}{by}" for what in ("variance of r", "of s") for by in ("", ", by the old routes", ", routing alone")),
    ]
    more = [second, ["---"] * len(second)]
    for key, found in record["routing"].items():
        name, lr = key.split("@")
        cells = [f"{found[f'{level}_{what}']['mean']:.2g}" for level in ("token", "sequence")
                 for what in ("now", "told", "routing")]  # fmt: skip
        more.append([NAMES[name], lr, f"{100 * found['changed']['mean']:.2g} %", *cells])
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in some) for some in (rows, more))


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and tables."""
    torch.set_num_threads(1)
    keys = [(name, lr) for name, arm in ARMS.items() for lr in arm.rates]
    measured = [(name, lr) for name in ("grpo", "gspo") for lr in ARMS[name].rates]
    with alone(plan.runs):
        # Seed by seed, so that an unfinished record has whole comparisons.
        made = {(name, lr, seed): run_of(plan, name, lr, seed) for seed in plan.seeds for name, lr in keys}
        spreads = {key: [routing_alone(plan, *key, seed) for seed in plan.seeds] for key in measured}
        starts = [start_of(plan, seed)[1] for seed in plan.seeds]
    runs = {f"{name}@{lr:g}": [made[name, lr, seed] for seed in plan.seeds] for name, lr in keys}
    arms = {key: summed_up(found) for key, found in runs.items()}
    for name, lr in keys:
        if name in BASES:
            one, base = (arms[f"{of}@{lr:g}"]["held_out"]["seeds"] for of in (name, BASES[name]))
            arms[f"{name}@{lr:g}"]["less_base"] = over_seeds([a - b for a, b in zip(one, base, strict=True)])
    record = {
        "command": "make record-moe",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "start": over_seeds([start["accuracy"] for start in starts]),
        "start_steps": [start["supervised_steps"] for start in starts],
        "arms": arms,
        "routing": {
            f"{name}@{lr:g}": {what: over_seeds([part[what] for part in found]) for what in found[0]}
            for (name, lr), found in spreads.items()
        },
        "runs": runs,
        "machine_seconds": sum(part["seconds"] for part in (*made.values(), *starts)),
        "versions": read_summary(plan.runs / f"gspo-lr{ARMS['gspo'].rates[0]:g}-seed{plan.seeds[0]}")["versions"],
    }
    draw(record, plan.docs / "images" / "moe.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "moe", record, table(record))
    return record


if __name__ == "__main__":
    main()
