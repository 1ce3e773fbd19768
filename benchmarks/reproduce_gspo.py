"""GSPO against GRPO in the setting of section 5.1 of the GSPO paper (2507.18071): `make reproduce-gspo`.

Four mini-batches per rollout batch, GSPO clipping at 3e-4/4e-4, GRPO at 0.2/0.27, no KL; both from the same weights,
on the same prompts, with the same sampling seeds. The tiny model learns sums of two- and of three-digit numbers, each
from a supervised start, over several seeds; SmolLM2-135M-Instruct writes sentences with two given words, in float32,
because bf16 rounding alone moves its sequence ratios by tens of times GSPO's clip range.

Everything is made once: a finished run is skipped, an interrupted one goes on. Writes docs/records/reproduce-gspo.json
and docs/images/reproduce-gspo*.png.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from experiment import (
    ADDITION,
    ROOT,
    finished_run,
    once,
    over_seeds,
    percent,
    points_of,
    put_table,
    read_metrics,
    rounded,
    started_model,
)
from figures import COLORS, Axes, band, grid, label, points, save, smooth

from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig, Schedule
from gspo.data import DataConfig
from gspo.objectives import GRPO, GSPO
from gspo.policies.master import AdamW
from gspo.sampling import Sampling
from gspo.training.evaluate import evaluate
from gspo.training.parts import build
from gspo.training.run import read_summary

Clipped = GSPO | GRPO
OBJECTIVES: dict[str, Clipped] = {
    "gspo": GSPO(clip_low=3e-4, clip_high=4e-4),
    "grpo": GRPO(clip_low=0.2, clip_high=0.27),
}

TINY = replace(ADDITION, steps=60, checkpoints=Checkpoints(every=1000, keep_rollouts=0))
"""The tiny model's runs, but for digits, start, learning rate and seed."""

TEXT = RunConfig(
    model="smollm2-135m-instruct",
    dtype="float32",
    threads=1,
    steps=12,
    prompts_per_step=8,
    group_size=8,
    updates_per_step=4,
    micro_batch_tokens=4096,
    layout="shared_prefix",
    sampling=Sampling(temperature=0.7, max_completion_tokens=32),
    optimizer=AdamW(lr=1e-5),
    schedule=Schedule(warmup_steps=2),
    data=DataConfig(task="two_words", held_out_prompts=200),
    evaluation=Evaluation(every=0, prompts=0, temperature=0.7),
    checkpoints=Checkpoints(every=6, keep=1, keep_rollouts=0),
    trackers=(),
)
"""The recipe smollm2-two-words in float32 and with fewer steps; held-out questions are asked afterwards."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Sums of numbers with so many digits, from a supervised start that ends at a held-out accuracy."""

    digits: int
    stop_at: float

    @property
    def name(self) -> str:
        return f"{self.digits}-digit"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/reproduce-gspo")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    tasks: tuple[Task, ...] = (Task(digits=2, stop_at=0.4), Task(digits=3, stop_at=0.1))
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    lr: float = 3e-4
    """The learning rate that both objectives share: the default recipe's."""
    sweep_lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Tried for each objective and task on a seed that is not compared; the best one is the objective's own."""
    sweep_seed: int = 0
    clip_scales: tuple[float, ...] = (1.0, 10.0, 100.0)
    """GSPO's clip range times these, on the sweep's seed: the paper's is for answers of thousands of tokens."""
    text: RunConfig = TEXT
    text_seeds: tuple[int, ...] = (0, 1)
    length_edges: tuple[int, ...] = field(default=(1, 12, 16, 20, 24, 28, 32))
    """Edges of the length classes of the ratio figure: a class ends where the next begins, the last one is one more."""


# ---- the runs ----------------------------------------------------------------------------------------------


def tiny_run(plan: Plan, task: Task, objective: str, lr: float, seed: int, clip_scale: float = 1.0) -> Path:
    """The finished run of one cell; the supervised start of (task, seed) is made once and shared."""
    data = replace(plan.tiny.data, options={"digits": task.digits})
    config = replace(plan.tiny, seed=seed, data=data)
    start = replace(config, cold_start=replace(config.cold_start, stop_at=task.stop_at))
    model, _ = started_model(start, plan.runs / task.name / f"start-seed{seed}")
    wider = "" if clip_scale == 1 else f"-clip{clip_scale:g}x"
    folder = plan.runs / task.name / f"{objective}{wider}-lr{lr:g}-seed{seed}"
    return finished_run(
        replace(
            config,
            name=folder.name,
            folder=str(folder),
            model=model,
            objective=scaled(OBJECTIVES[objective], clip_scale),
            optimizer=replace(config.optimizer, lr=lr),
            cold_start=ColdStart(),
        )
    )


def scaled(objective: Clipped, by: float) -> Clipped:
    """The objective with its clip range so many times as wide."""
    return (
        objective
        if by == 1
        else replace(objective, clip_low=by * objective.clip_low, clip_high=by * objective.clip_high)
    )


def text_run(plan: Plan, objective: str, seed: int) -> Path:
    folder = plan.runs / "text" / f"{objective}-seed{seed}"
    config = replace(plan.text, seed=seed, name=folder.name, folder=str(folder), objective=OBJECTIVES[objective])
    return finished_run(config)


def final_accuracy(folder: Path) -> float:
    return read_summary(folder)["after"]["accuracy"]


def sweep(plan: Plan) -> dict[str, dict[str, dict[str, float]]]:
    """task -> objective -> learning rate -> final held-out accuracy on the sweep's seed."""
    return {
        task.name: {
            name: {f"{lr:g}": final_accuracy(tiny_run(plan, task, name, lr, plan.sweep_seed)) for lr in plan.sweep_lrs}
            for name in OBJECTIVES
        }
        for task in plan.tasks
    }


def clip_ranges(plan: Plan) -> dict[str, dict[str, dict[str, float]]]:
    """task -> width of GSPO's clip range, in the paper's -> accuracy and clipped share, on the sweep's seed."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task in plan.tasks:
        for scale in plan.clip_scales:
            folder = tiny_run(plan, task, "gspo", plan.lr, plan.sweep_seed, scale)
            clipped = clipped_shares(trained_rows(folder), plan.tiny.updates_per_step)["all"]
            found.setdefault(task.name, {})[f"{scale:g}"] = {"held_out": final_accuracy(folder), "clipped": clipped}
    return found


def held_out(plan: Plan, model: str, path: Path) -> list[float]:
    """Reward of one sampled completion for each held-out question of the text task: the same draws for every model."""

    def make() -> dict[str, Any]:
        began = time.perf_counter()
        parts = build(replace(plan.text, model=model, seed=0), report=lambda text: None)
        rows = parts.dataset.held_out
        result = evaluate(parts.evaluation_source(plan.text.evaluation.temperature), rows, parts.dataset.is_correct)
        parts.rewards.close()
        print(f"{path}: {result.reward:.3f}", flush=True)
        return {"rewards": result.rewards[:, 0].tolist(), "seconds": time.perf_counter() - began}

    return once(path, make)["rewards"]


# ---- what the files of a run say ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A completion that went through the network, at the update that trained it."""

    step: int
    update: int
    gap: np.ndarray
    """[tokens] log-ratio of each token, policy to old policy."""
    clipped: int
    """Tokens whose gradient a clip bound took away; GSPO clips all tokens of a sequence or none."""
    is_against: bool
    """Whether its mean log-ratio has moved against its advantage: down for a good one, up for a bad one."""


def trained_rows(folder: Path) -> list[Row]:
    """Every trained completion of a run, from its rollout and ledger files; rows that skipped the network left out."""
    found: list[Row] = []
    for file in sorted((folder / "rollouts").glob("step_*.parquet")):
        rollouts = pq.read_table(file, columns=["group", "index", "logprobs", "old_logprobs"]).to_pylist()
        by_place = {(row["group"], row["index"]): row for row in rollouts}
        for entry in pq.read_table(folder / "ledger" / file.name).to_pylist():
            if entry["skipped"]:
                continue
            row = by_place[entry["group"], entry["index"]]
            gap = np.subtract(row["logprobs"], row["old_logprobs"])
            clipped = (
                entry["clipped_low"] + entry["clipped_high"]
                if "clipped_low" in entry
                else len(gap) * (entry["bound"] != "none")
            )
            is_against = gap.mean() * entry["advantage"] < 0
            found.append(
                Row(step=entry["step"], update=entry["update"], gap=gap, clipped=clipped, is_against=is_against)
            )
    return found


def clipped_shares(rows: Sequence[Row], updates: int) -> dict[str, float]:
    """Clipped tokens over trained tokens, of all mini-batches and of each (numbered from 1)."""

    def share(of: list[Row]) -> float:
        return sum(row.clipped for row in of) / max(sum(len(row.gap) for row in of), 1)

    each = {f"mini_batch_{u + 1}": share([row for row in rows if row.update == u]) for u in range(updates)}
    return {"all": share(list(rows)), **each}


def ratio_spread(rows: Sequence[Row]) -> dict[str, float]:
    """Variance of the sequence ratio s_i and of the token ratio r_it behind the first mini-batch, where both are 1."""
    moved = [row.gap for row in rows if row.update > 0]
    if not moved:
        return {"sequence_variance": 0.0, "token_variance": 0.0}
    return {
        "sequence_variance": float(np.var([np.exp(gap.mean()) for gap in moved])),
        "token_variance": float(np.var(np.exp(np.concatenate(moved)))),
    }


def against_share(rows: Sequence[Row]) -> float:
    """Of the completions that train unclipped behind the first mini-batch: those moved against their advantage."""
    free = [row.is_against for row in rows if row.update > 0 and not row.clipped]
    return float(np.mean(free)) if free else 0.0


def by_length(runs: Sequence[Sequence[Row]], edges: Sequence[int], draws: int = 2000) -> list[dict[str, Any]]:
    """Standard deviations of s_i and r_it by completion length, with 95 % bootstrap intervals over rollout batches.

    Completions of one rollout batch share the weights that moved, so whole batches are drawn.
    """
    keys = sorted({(number, row.step) for number, rows in enumerate(runs) for row in rows})
    place = {key: i for i, key in enumerate(keys)}
    classes = len(edges) - 1
    sums = np.zeros((2, len(keys), classes, 3))  # sequence or token; count, sum, sum of squares
    lengths = np.zeros(classes)
    for number, rows in enumerate(runs):
        for row in rows:
            k = int(np.searchsorted(edges, len(row.gap), side="right")) - 1
            k = min(k, classes - 1)  # the last edge is the longest completion itself
            if row.update == 0 or k < 0:
                continue
            lengths[k] += len(row.gap)
            for level, values in enumerate((np.exp(row.gap.mean(keepdims=True)), np.exp(row.gap))):
                sums[level, place[number, row.step], k] += len(values), values.sum(), np.square(values).sum()
    if not keys:
        return []
    draw = np.random.default_rng(0).integers(len(keys), size=(draws, len(keys)))
    out = []
    for k in range(classes):
        if sums[0, :, k, 0].sum() < 2:
            continue
        facts: dict[str, Any] = {"from": edges[k], "to": edges[k + 1] - (k < classes - 1)}
        facts |= {"completions": int(sums[0, :, k, 0].sum()), "mean_length": lengths[k] / sums[0, :, k, 0].sum()}
        for level, name in enumerate(("sequence", "token")):
            low, high = np.nanquantile(_std(sums[level, :, k][draw].sum(axis=1)), [0.025, 0.975])
            facts[name] = {"std": float(_std(sums[level, :, k].sum(axis=0))), "low": float(low), "high": float(high)}
        out.append(facts)
    return out


def _std(sums: np.ndarray) -> np.ndarray:
    """Standard deviation from [..., 3] sums; NaN where there was nothing."""
    number = np.where(sums[..., 0] > 0, sums[..., 0], np.nan)
    mean = sums[..., 1] / number
    return np.sqrt(np.maximum(sums[..., 2] / number - np.square(mean), 0.0))


def curves(folder: Path, rows_per_step: int) -> dict[str, list[float]]:
    """Sampled reward by step and held-out accuracy by evaluation, against completion tokens sampled so far."""
    lines = read_metrics(folder)
    tokens, out = 0.0, {"tokens": [], "reward": [], "held_out_tokens": [], "held_out": []}
    for line in lines:
        if "reward" in line:
            tokens += line["completions/mean_length"] * rows_per_step
            out["tokens"].append(tokens)
            out["reward"].append(line["reward"])
        if "eval/accuracy" in line:
            out["held_out_tokens"].append(tokens)
            out["held_out"].append(line["eval/accuracy"])
    return out


def facts_of(folder: Path, config: RunConfig) -> dict[str, Any]:
    """All figures of one run."""
    rows = trained_rows(folder)
    traced = curves(folder, config.prompts_per_step * config.group_size)
    last = max(config.steps // 6, 1)
    return {
        "folder": folder.name,
        "reward_last_sixth": float(np.mean(traced["reward"][-last:])),
        "reward_mean": float(np.mean(traced["reward"])),
        "clipped": clipped_shares(rows, config.updates_per_step),
        **ratio_spread(rows),
        "against_of_unclipped": against_share(rows),
        "seconds": read_summary(folder)["seconds"],
        **traced,
    }


# ---- comparing ---------------------------------------------------------------------------------------------


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with intervals."""
    names = ("reward_last_sixth", "reward_mean", "sequence_variance", "token_variance", "against_of_unclipped")
    out = {name: over_seeds([run[name] for run in runs]) for name in names}
    out["clipped"] = {name: over_seeds([run["clipped"][name] for run in runs]) for name in runs[0]["clipped"]}
    if runs[0]["held_out"]:
        out["held_out"] = over_seeds([run["held_out"][-1] for run in runs])
    return out


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """a - b, paired by seed: both started from the same weights."""
    names = ("held_out", "reward_last_sixth", "reward_mean")
    return {
        name: over_seeds([x - y for x, y in zip(a[name]["seeds"], b[name]["seeds"], strict=True)])
        for name in names
        if name in a
    }


def tiny_part(plan: Plan, task: Task, swept: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Both objectives at the shared learning rate, and each at its own best of the sweep."""
    own = {name: float(max(found, key=lambda lr: found[lr])) for name, found in swept.items()}
    arms = {(name, lr) for name in OBJECTIVES for lr in (plan.lr, own[name])}
    out: dict[str, Any] = {"own_lr": own, "arms": {}, "runs": {}}
    for name, lr in sorted(arms, key=lambda arm: (arm[0] != "gspo", arm[1])):
        runs = [facts_of(tiny_run(plan, task, name, lr, seed), plan.tiny) for seed in plan.seeds]
        out["runs"][f"{name} {lr:g}"] = runs
        out["arms"][f"{name} {lr:g}"] = summed_up(runs)
    starts = [
        json.loads((plan.runs / task.name / f"start-seed{s}" / "cold-start.json").read_text()) for s in plan.seeds
    ]
    out["start"] = over_seeds([start["accuracy"] for start in starts])
    out["start_steps"] = [start["supervised_steps"] for start in starts]
    pick = lambda lrs: difference(*(out["arms"][f"{name} {lrs[name]:g}"] for name in ("gspo", "grpo")))  # noqa: E731
    out["gspo_minus_grpo"] = {"same_lr": pick(dict.fromkeys(OBJECTIVES, plan.lr)), "own_lr": pick(own)}
    return out


def over_questions(rewards: np.ndarray, draws: int = 4000) -> dict[str, float]:
    """Mean over questions and its 95 % bootstrap interval over questions."""
    drawn = rewards[np.random.default_rng(0).integers(len(rewards), size=(draws, len(rewards)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(rewards.mean()), "low": float(low), "high": float(high)}


def text_part(plan: Plan) -> dict[str, Any]:
    """SmolLM2: too few seeds for an interval over them, so each seed has one over questions."""
    folders = {name: [text_run(plan, name, seed) for seed in plan.text_seeds] for name in OBJECTIVES}
    before = np.array(held_out(plan, plan.text.model, plan.runs / "text" / "before.json"))
    after = {
        name: [np.array(held_out(plan, str(f / "model"), f / "held-out.json")) for f in found]
        for name, found in folders.items()
    }
    runs = {name: [facts_of(folder, plan.text) for folder in found] for name, found in folders.items()}
    pairs = zip(after["gspo"], after["grpo"], strict=True)
    return {
        "before": over_questions(before),
        "after": {name: [over_questions(x) for x in found] for name, found in after.items()},
        "gspo_minus_grpo": {
            "by_seed": [over_questions(a - b) for a, b in pairs],
            "all_seeds": over_questions(np.mean(after["gspo"], axis=0) - np.mean(after["grpo"], axis=0)),
        },
        "arms": {name: summed_up(found) for name, found in runs.items()},
        "by_length": {
            name: by_length([trained_rows(folder) for folder in found], plan.length_edges)
            for name, found in folders.items()
        },
        "runs": runs,
    }


def machine_seconds(plan: Plan) -> dict[str, float]:
    """Seconds inside the runs, the supervised starts and the held-out questions."""
    read = lambda pattern: [json.loads(path.read_text())["seconds"] for path in plan.runs.glob(pattern)]  # noqa: E731
    parts = {
        "starts": read("*/start-*/cold-start.json"),
        "tiny_runs": [s for task in plan.tasks for s in read(f"{task.name}/*/summary.json")],
        "text_runs": read("text/*/summary.json"),
        "text_held_out": [*read("text/before.json"), *read("text/*/held-out.json")],
    }
    out = {name: float(sum(seconds)) for name, seconds in parts.items()}
    return {**out, "all": sum(out.values())}


# ---- pictures, table, record -------------------------------------------------------------------------------

TOKENS = "completion tokens sampled, thousands"


def draw_learning(record: dict[str, Any], path: Path) -> None:
    """A column per task: reward while sampling, held-out questions, and the difference that belongs to each seed."""
    tasks, text = record["tasks"], record["text"]
    figure, axes = grid(3, len(tasks) + 1, 4.1 * (len(tasks) + 1), 8.6)
    for column, (name, part) in enumerate(tasks.items()):
        for arm, runs in part["runs"].items():
            objective, lr = arm.split()
            style = {"color": COLORS[objective], "label": f"{objective.upper()}, lr {lr}"}
            style["ls"] = "-" if float(lr) == record["lr"] else "--"
            for row, (x, y, width) in enumerate((("tokens", "reward", 5), ("held_out_tokens", "held_out", 1))):
                along = np.mean([run[x] for run in runs], axis=0) / 1e3
                band(axes[row, column], along, [smooth(run[y], width) for run in runs], **style)
        label(axes[0, column], f"{name} sums: sampled reward", TOKENS, "mean reward, 5 steps")
        label(axes[1, column], f"{name} sums: held out, greedy", TOKENS, "exact match")
        axes[0, column].legend(fontsize=8, loc="upper left")
        draw_difference(axes[2, column], *(part["runs"][f"{objective} {record['lr']:g}"] for objective in OBJECTIVES))
        label(axes[2, column], f"{name} sums: GSPO - GRPO, same seed", TOKENS, "held out, points")
    for objective, runs in text["runs"].items():
        along = np.mean([run["tokens"] for run in runs], axis=0) / 1e3
        rewards = [smooth(run["reward"], 4) for run in runs]
        band(axes[0, -1], along, rewards, color=COLORS[objective], label=objective.upper())
    label(axes[0, -1], "SmolLM2, two words: sampled reward", TOKENS, "mean reward, 4 steps")
    axes[0, -1].legend(fontsize=8, loc="upper left")
    points(axes[1, -1], [0], [text["before"]], fmt="s", color="0.4")
    for i, (objective, found) in enumerate(text["after"].items()):
        x = 1 + i + 0.3 * (np.arange(len(found)) - (len(found) - 1) / 2)
        points(axes[1, -1], x, found, fmt="o", color=COLORS[objective])
    axes[1, -1].set_xticks(range(1 + len(text["after"])), ["before", *(name.upper() for name in text["after"])])
    axes[1, -1].set_ylim(0, 1)
    label(axes[1, -1], "SmolLM2, two words: held out, by seed", "", "both words in one sentence")
    minus = [{key: 100 * value for key, value in found.items()} for found in text["gspo_minus_grpo"]["by_seed"]]
    points(axes[2, -1], range(len(minus)), minus, fmt="o", color="0.2")
    axes[2, -1].axhline(0, color="0.4", lw=0.8)
    axes[2, -1].set_xticks(range(len(minus)), [f"seed {seed}" for seed in record["text_seeds"]])
    axes[2, -1].set_xlim(-0.6, len(minus) - 0.4)
    label(axes[2, -1], "SmolLM2, two words: GSPO - GRPO, same seed", "", "held out, points")
    save(figure, path)


def draw_difference(axis: Axes, gspo: list[dict[str, Any]], grpo: list[dict[str, Any]]) -> None:
    """Held-out accuracy of one less the other's from the same start: mean, and 95 % interval over seeds."""
    along = np.mean([run["held_out_tokens"] for run in gspo], axis=0) / 1e3
    minus = 100 * np.array([np.subtract(a["held_out"], b["held_out"]) for a, b in zip(gspo, grpo, strict=True)])
    points(axis, along, [over_seeds(column) for column in minus.T], fmt="o-", ms=4, color="0.2")
    axis.axhline(0, color="0.4", lw=0.8)


def draw_clipping(record: dict[str, Any], path: Path) -> None:
    """Left: clipped share of the trained tokens by mini-batch. Right: spread of the ratios by completion length."""
    figure, axes = grid(1, 2, 10.4, 4.4)
    left, right = axes[0]
    settings = {name: part["arms"] for name, part in record["tasks"].items()} | {"SmolLM2": record["text"]["arms"]}
    for place, ((name, arms), marker, dash) in enumerate(zip(settings.items(), "osD", ("-", "--", ":"), strict=False)):
        for arm, found in arms.items():
            objective, *lr = arm.split()
            if lr and float(lr[0]) != record["lr"]:
                continue
            shares = [value for key, value in found["clipped"].items() if key != "all"][1:]
            spans = [{"mean": f["mean"], "low": min(f["seeds"]), "high": max(f["seeds"])} for f in shares]
            style = {"color": COLORS[objective], "marker": marker, "ls": dash, "ms": 4}
            x = 2 + np.arange(len(shares)) + 0.05 * (place - 1)
            points(left, x, spans, label=f"{objective.upper()}, {name}", **style)
            left.set_xticks(range(2, 2 + len(shares)))
    left.set_yscale("log")
    left.set_ylim(top=1.0)
    left.legend(fontsize=7.5, ncols=2, loc="lower right")
    label(left, "clipped share of the trained tokens", "mini-batch (none in the first: its ratio is 1)", "share")
    for objective, classes in record["text"]["by_length"].items():
        x = np.array([found["mean_length"] for found in classes])
        for level, marker, dash in (("token", "s", "--"), ("sequence", "o", "-")):
            name = "token ratio r" if level == "token" else "sequence ratio s"
            found = [{"mean": c[level]["std"], **c[level]} for c in classes]
            style = {"color": COLORS[objective], "marker": marker, "ls": dash, "ms": 4}
            points(right, x, found, label=f"{objective.upper()}: {name}", **style)
        expected = [c["token"]["std"] for c in classes] / np.sqrt(x)
        right.plot(x, expected, color=COLORS[objective], ls=":", lw=1, label=f"{objective.upper()}: r's / √length")
    right.set_yscale("log")
    right.set_ylim(top=0.35)
    right.legend(fontsize=7.5, ncols=2, loc="upper center")
    label(right, "SmolLM2: standard deviation of the ratios", "completion length, tokens", "standard deviation")
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    """The comparison and the clipping as two Markdown tables."""
    rows = [["", "before", "GSPO", "GRPO", "GSPO - GRPO, points"], ["---"] * 5]
    arms = [f"{name} {record['lr']:g}" for name in OBJECTIVES]
    for name, part in record["tasks"].items():
        minus = part["gspo_minus_grpo"]["same_lr"]
        for key, what in (("held_out", "held out, greedy"), ("reward_last_sixth", "sampled reward, last sixth")):
            before = percent(part["start"]) if key == "held_out" else ""
            ends = [percent(part["arms"][arm][key]) for arm in arms]
            rows.append([f"{name} sums, {what}", before, *ends, points_of(minus[key])])
    text = record["text"]
    for i, seed in enumerate(record["text_seeds"]):
        ends = [percent(text["after"][name][i]) for name in OBJECTIVES]
        minus = points_of(text["gspo_minus_grpo"]["by_seed"][i])
        rows.append([f"two words, held out, T = 0.7, seed {seed}", percent(text["before"]), *ends, minus])
    everything = [(name, part["arms"], arms) for name, part in record["tasks"].items()]
    everything.append(("two words", text["arms"], list(OBJECTIVES)))
    batches = [key for key in everything[0][1][arms[0]]["clipped"] if key != "all"]
    heads = ["clipped share of trained tokens", *(f"mini-batch {i + 1}" for i in range(len(batches))), "all"]
    clips = [[*heads, "variance of s", "variance of r"], ["---"] * (len(heads) + 2)]
    for name, found, keys in everything:
        for objective, key in zip(OBJECTIVES, keys, strict=True):
            shares = [f"{100 * found[key]['clipped'][batch]['mean']:.2g} %" for batch in (*batches, "all")]
            spread = [f"{found[key][f'{level}_variance']['mean']:.2g}" for level in ("sequence", "token")]
            clips.append([f"{objective.upper()}, {name}", *shares, *spread])
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in table) for table in (rows, clips))


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes the record and the pictures."""
    torch.set_num_threads(1)
    swept = sweep(plan)
    record = {
        "command": "make reproduce-gspo",
        "lr": plan.lr,
        "seeds": plan.seeds,
        "text_seeds": plan.text_seeds,
        "sweep": {"seed": plan.sweep_seed, "held_out": swept},
        "gspo_clip_range": {"seed": plan.sweep_seed, "tasks": clip_ranges(plan)},
        "tasks": {task.name: tiny_part(plan, task, swept[task.name]) for task in plan.tasks},
        "text": text_part(plan),
        "machine_seconds": machine_seconds(plan),
        "versions": read_summary(text_run(plan, "gspo", plan.text_seeds[0]))["versions"],
    }
    target = plan.docs / "records" / "reproduce-gspo.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rounded(record, 5), indent=1))
    draw_learning(record, plan.docs / "images" / "reproduce-gspo.png")
    draw_clipping(record, plan.docs / "images" / "reproduce-gspo-clipping.png")
    put_table(plan.docs / "results.md", "reproduce-gspo", table(record))
    print(table(record))
    print({name: f"{seconds / 60:.1f} min" for name, seconds in record["machine_seconds"].items()})
    return record


if __name__ == "__main__":
    main()
