"""VerIPO's loop (2505.19000) against GSPO alone, at equal time: `make record-veripo`.

Task chain_steps: sums worked out in steps, paid by the last number alone. The supervised start has seen chains of which
a share goes wrong in a step and is right in the answer, so that samples are often right for no reason. From the same
start, over several seeds: GSPO alone; and rounds of GSPO (explore), then DPO (align) on the pairs that the rules
verifier finds in the rollouts of that round, every equation recomputed.

Held-out completions are sampled at temperature 1 and greedily from every checkpoint, after the runs and outside their
time. Inconsistent: `gspo.verifiers.rules.inconsistency` finds something, a wrong equation, or an answer that is not the
last result.

Equal time: the loop runs first. The median seconds of its explore steps, of its align steps and of its verifying, over
all rounds and seeds, say what one of each costs; GSPO alone gets as many steps as fit into the loop's total. The time
axis and "seconds" are these costs, so that what else a machine does falls on both arms alike; `wall` is what the clock
said. Writing rollout files, which both do, is left out. The learning rate is constant: every point of a curve is
what a run that ended there would have.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/veripo.json, docs/images/veripo.png and the
table in docs/results.md.
"""

import json
import shutil
import time
from collections.abc import Sequence
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
    rounded,
    started_model,
)
from figures import band, grid, label, save
from safetensors.torch import load_file

from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig
from gspo.data import DataConfig
from gspo.models import TinyConfig
from gspo.phases import Phase, Span, source_of
from gspo.policies.master import AdamW
from gspo.sampling import Sampling
from gspo.training.folder import RunFolder
from gspo.training.parts import Parts, build
from gspo.training.phased import corrected, read_attempts, read_found, schedule
from gspo.training.run import read_summary
from gspo.training.state import checkpoints
from gspo.verifiers import Rules, build_pairs
from gspo.verifiers.pairs import KINDS
from gspo.verifiers.rules import inconsistency

EXPLORE = Phase(name="explore", steps=8)
ALIGN = Phase(
    name="align",
    steps=4,
    pairs_from="explore",
    verifier=Rules(consistency="equations"),
    reflection="{attempt}?{answer}",
    drop_solved=0.8,
    settings={"objective": "dpo", "optimizer.lr": 5e-5, "prompts_per_step": 64, "updates_per_step": 2},
)
LOOP = RunConfig(
    threads=1,
    steps=6 * (EXPLORE.steps + ALIGN.steps),
    prompts_per_step=16,
    group_size=8,
    updates_per_step=4,
    tiny=TinyConfig(hidden_size=64, layers=2, heads=4, kv_heads=4, intermediate_size=192, alphabet="0123456789+= ?"),
    sampling=Sampling(max_completion_tokens=32),
    optimizer=AdamW(lr=2e-4),
    cold_start=ColdStart(steps=300, batch=64, lr=3e-3, stop_at=0.6, check_every=20),
    data=DataConfig(task="chain_steps", options={"noise": 0.6}, held_out_prompts=400),
    evaluation=Evaluation(every=0, prompts=0),
    checkpoints=Checkpoints(every=4, keep=1000, keep_rollouts=0),
    trackers=(),
    phase=(EXPLORE, ALIGN),
)
"""The loop: six rounds. GSPO alone is the same without phases."""
ARMS = {"gspo": "GSPO alone", "veripo": "VerIPO's loop"}
COLORS = {"gspo": "#1f6fb4", "veripo": "#4a8a4a"}
TEMPERATURES = {"sampled": 1.0, "greedy": 0.0}
MEASURES = {
    "right": "right",
    "inconsistent": "inconsistent, of all",
    "inconsistent_right": "inconsistent, of the right ones",
    "reflecting": "corrects itself",
    "length": "characters",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/veripo")
    docs: Path = ROOT / "docs"
    loop: RunConfig = LOOP
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


# ---- the runs ----------------------------------------------------------------------------------------------


def run_of(plan: Plan, config: RunConfig, arm: str, seed: int) -> dict[str, Any]:
    """One finished run: seconds of its steps, what its checkpoints say to held-out questions, its pairs."""
    config = replace(config, seed=seed)
    model, _ = started_model(config, plan.runs / f"start-seed{seed}")
    folder = plan.runs / f"{arm}-seed{seed}"
    config = replace(config, name=folder.name, folder=str(folder), model=model, cold_start=ColdStart())
    finished_run(config, keep_checkpoints=True)
    found = once(folder / "held-out.json", lambda: measured(config, RunFolder(folder)))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {**found, "seconds": step_seconds(config, folder), "wall": read_summary(folder)["seconds"]}


def step_seconds(config: RunConfig, folder: Path) -> dict[str, list[float]]:
    """Seconds of the steps by phase, without saving; a run without phases only explores."""
    by_step = {
        int(line["step"]): line["step_time"] - line["time/save"] for line in read_metrics(folder) if "step_time" in line
    }
    found: dict[str, list[float]] = {EXPLORE.name: [], ALIGN.name: []}
    for span in schedule(config):  # a phase without pairs has no steps
        found[span.phase.name or EXPLORE.name] += [by_step[i] for i in steps_of(span) if i in by_step]
    return found


def steps_of(span: Span) -> range:
    """Numbers of a span's steps, as files and metrics have them."""
    return range(span.start + 1, span.end + 1)


def measured(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """Held-out scores of the checkpoints, and the pairs of every round with the seconds that finding them takes."""
    parts = build(config, report=lambda text: None)
    saved = {int(path.name.removeprefix("step_")): path for path in reversed(checkpoints(folder.checkpoints))}
    wanted = {*range(0, config.steps, config.checkpoints.every), config.steps}  # an interrupted run has one more
    try:
        return {
            "checkpoints": [scores(parts, step, path) for step, path in saved.items() if step in wanted],
            "rounds": [verified(parts, folder, span) for span in schedule(config) if span.phase.pairs_from],
        }
    finally:
        parts.rewards.close()


def scores(parts: Parts, step: int, checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint behind a step says to the held-out questions."""
    parts.policy.weights.load(load_file(checkpoint / "weights.safetensors"))
    parts.sampler.sync_weights(parts.policy, step)
    rows = parts.dataset.held_out
    assert parts.dataset.is_correct is not None
    found: dict[str, Any] = {"step": step}
    for name, temperature in TEMPERATURES.items():
        groups = parts.evaluation_source(temperature).wave(list(enumerate(rows)), -1).groups
        texts = [group.rollouts[0].text for group in groups]
        right = np.array([parts.dataset.is_correct(text, row) for text, row in zip(texts, rows, strict=True)])
        wrong_steps = np.array([bool(inconsistency(text)) for text in texts])
        found[name] = {
            "right": float(right.mean()),
            "inconsistent": float(wrong_steps.mean()),
            "inconsistent_right": float((wrong_steps & right).sum() / max(right.sum(), 1)),
            "reflecting": float(np.mean(["?" in text for text in texts])),
            "length": float(np.mean([len(text) for text in texts])),
        }
    return found


def verified(parts: Parts, folder: RunFolder, span: Span) -> dict[str, Any]:
    """The pairs that a phase began with, and the seconds of finding them once more."""
    began = time.perf_counter()
    attempts = read_attempts(folder, steps_of(source_of(span, schedule(parts.config))))
    verdicts = span.phase.verifier(attempts)
    build_pairs(
        list(zip(attempts, verdicts, strict=True)),
        span.phase.kinds,
        correct=lambda attempt: corrected(attempt, span.phase.reflection, parts.renderer),
        max_tokens=span.phase.max_pair_tokens,
    )
    seconds = time.perf_counter() - began
    found = read_found(folder.pairs / f"step_{span.start:06d}.json")
    kinds = [pair.kind for pair in found.pairs]
    return {"seconds": seconds, "dropped": len(found.dropped), **{kind: kinds.count(kind) for kind in KINDS}}


# ---- equal time --------------------------------------------------------------------------------------------


def costs_of(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of an explore step, an align step and a round's verifying."""
    every = {name: [s for run in runs for s in run["seconds"][name]] for name in runs[0]["seconds"]}
    every["verify"] = [found["seconds"] for run in runs for found in run["rounds"]]
    return {name: float(np.median(values)) if values else 0.0 for name, values in every.items()}


def clock(config: RunConfig, costs: dict[str, float]) -> np.ndarray:
    """[steps + 1] Seconds behind each step, by what steps cost."""
    spent = [0.0]
    for span in schedule(config):
        first = costs["verify"] if span.phase.pairs_from else 0.0
        each = costs[span.phase.name or EXPLORE.name]
        spent += [spent[-1] + first + each * i for i in range(1, span.end - span.start + 1)]
    return np.array(spent)


def per_item(plan: Plan, costs: dict[str, float]) -> dict[str, Any]:
    """Seconds per completion of each phase, the verifier's in the second; and how many times as fast that is."""
    loop, (explore, align) = plan.loop, plan.loop.phase
    pairs = int(align.settings["prompts_per_step"])
    explored = costs[explore.name] / (loop.prompts_per_step * loop.group_size)
    aligned = costs[align.name] / (2 * pairs)
    with_verifier = aligned + costs["verify"] / (2 * pairs * align.steps)
    return {
        "explore": explored,
        "align": aligned,
        "align_with_verifier": with_verifier,
        "explore_over_align": explored / aligned,
        "explore_over_align_with_verifier": explored / with_verifier,
    }


# ---- figures -----------------------------------------------------------------------------------------------


def over_runs(config: RunConfig, runs: Sequence[dict[str, Any]], costs: dict[str, float]) -> dict[str, Any]:
    """One arm over its seeds."""
    steps = [found["step"] for found in runs[0]["checkpoints"]]
    seconds = clock(config, costs)
    ends = {
        f"{name}_{where}": {
            measure: over_seeds([run["checkpoints"][place][name][measure] for run in runs]) for measure in MEASURES
        }
        for name in TEMPERATURES
        for where, place in (("start", 0), ("end", -1))
    }
    return {
        "steps": config.steps,
        "seconds": float(seconds[-1]),
        "wall": over_seeds([run["wall"] for run in runs]),
        "checkpoint_seconds": [float(seconds[step]) for step in steps],
        **ends,
        "runs": list(runs),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Over time: mean of the seeds, the lowest to the highest; grey where the loop learns from pairs."""
    shown = ("right", "inconsistent", "inconsistent_right")
    figure, axes = grid(1, len(shown), 11.5, 3.3)
    for axis, measure in zip(axes.flat, shown, strict=True):
        for start, end in record["align_seconds"]:
            axis.axvspan(start, end, color="#000000", alpha=0.06, lw=0)
        for arm, name in ARMS.items():
            part = record["arms"][arm]
            lines = [[found["sampled"][measure] for found in run["checkpoints"]] for run in part["runs"]]
            band(axis, part["checkpoint_seconds"], lines, color=COLORS[arm], marker="o", ms=3, label=name)
        axis.set_ylim(bottom=0)
        label(axis, f"held out, T = 1: {MEASURES[measure]}", "seconds of training", "share")
    axes[0, 0].legend(fontsize=7.5)
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    """The arms at the end of the same time, as Markdown."""
    rows = [["held out", "start", *ARMS.values(), "the loop - GSPO alone"], ["---"] * 5]
    for name, title in (("sampled", "T = 1"), ("greedy", "greedy")):
        for measure, said in MEASURES.items():
            is_share = measure != "length"
            found = [record["arms"][arm][f"{name}_end"][measure] for arm in ARMS]
            shown = [record["arms"]["gspo"][f"{name}_start"][measure], *found]
            minus = record["veripo_minus_gspo"][name][measure]
            cells = [percent(part) if is_share else f"{part['mean']:.1f}" for part in shown]
            difference = points_of(minus) if is_share else f"{minus['mean']:+.1f}"
            rows.append([f"{said}, {title}", *cells, difference])
    rows.append(["seconds by cost of steps", "", *(f"{record['arms'][arm]['seconds']:.1f}" for arm in ARMS), ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def paired(arms: dict[str, Any]) -> dict[str, Any]:
    """The loop less GSPO alone at the end, seed by seed."""

    def minus(name: str, measure: str) -> dict[str, Any]:
        pairs = zip(*(arms[arm][f"{name}_end"][measure]["seeds"] for arm in ("veripo", "gspo")), strict=True)
        return over_seeds([loop - single for loop, single in pairs])

    return {name: {measure: minus(name, measure) for measure in MEASURES} for name in TEMPERATURES}


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and table."""
    torch.set_num_threads(1)
    with alone(plan.runs):
        looped = [run_of(plan, plan.loop, "veripo", seed) for seed in plan.seeds]
        costs = once(plan.runs / "costs.json", lambda: costs_of(looped))
        total = clock(plan.loop, costs)[-1]
        single = replace(plan.loop, phase=(), steps=max(round(total / costs[EXPLORE.name]), 1))
        by_itself = [run_of(plan, single, "gspo", seed) for seed in plan.seeds]
    arms = {"gspo": over_runs(single, by_itself, costs), "veripo": over_runs(plan.loop, looped, costs)}
    times = clock(plan.loop, costs)
    starts = [json.loads((plan.runs / f"start-seed{seed}" / "cold-start.json").read_text()) for seed in plan.seeds]
    record = {
        "command": "make record-veripo",
        "seeds": plan.seeds,
        "costs": costs,
        "gspo_step_in_its_own_runs": float(np.median([s for run in by_itself for s in run["seconds"][EXPLORE.name]])),
        "seconds_per_completion": per_item(plan, costs),
        "arms": arms,
        "align_seconds": [
            (float(times[span.start]), float(times[span.end])) for span in schedule(plan.loop) if span.phase.pairs_from
        ],
        "veripo_minus_gspo": paired(arms),
        "starts": starts,
        "machine_seconds": sum(run["wall"] for run in (*looped, *by_itself)) + sum(s["seconds"] for s in starts),
        "versions": read_summary(plan.runs / f"gspo-seed{plan.seeds[0]}")["versions"],
    }
    draw(record, plan.docs / "images" / "veripo.png")
    per = rounded(record["seconds_per_completion"], 3)
    print(f"seconds per completion: {per}; {record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "veripo", record, table(record))
    return record


if __name__ == "__main__":
    main()
