"""ESPO (2512.03759) on 4x4 Sudoku: which likelihood, which ratio, which penalty, which masks: `make record-espo`.

1. Four arms from the same weights: the ratio of the sequence (GSPO) or of the position (GRPO), on the evidence lower
   bound or on the mean-field product. Clips of 0.2, eight updates on each rollout batch, groups of six, as the paper.
2. The penalty on the total gap of the bounds, coef/L * k(bound - reference bound), with k1, k2 and k3 as autograd takes
   them: gradient norms of the first arm. The released k1 has a score-function term besides, which this one has not.
3. Coupled against independent masks at equal forward passes: noise of the bound, of the log-ratio between two policies
   and of the policy gradient over draws, for the same completions.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/espo.json, docs/images/espo.png and the
tables in docs/results.md.
"""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

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
from figures import Axes, band, grid, label, save, smooth
from jaxtyping import Float
from torch import Tensor

from gspo.averaging import count, row_mean
from gspo.config import Checkpoints, ColdStart, Evaluation, RunConfig
from gspo.kl import kl_estimate
from gspo.objectives import GRPO, GSPO
from gspo.objectives.penalty import penalty_traits
from gspo.policies.config import DiffusionConfig
from gspo.policies.diffusion import ElboScorer
from gspo.policies.masks import Elbo
from gspo.ratio import sequence_log_ratio
from gspo.settings import load_config, recipe_folder
from gspo.training.batch import assemble, flatten
from gspo.training.loop import estimate
from gspo.training.parts import Given, build
from gspo.training.run import read_summary
from gspo.types import Scores, Step

TINY = replace(
    load_config(recipe_folder() / "sudoku-espo.toml"),
    threads=1,
    steps=30,
    prompts_per_step=24,
    epochs=8,
    objective=GSPO(clip_low=0.2, clip_high=0.2),
    evaluation=Evaluation(every=5, prompts=200),
    checkpoints=Checkpoints(every=10, save_rollouts_every=1000),
    trackers=(),
)
"""Every run, but for arm and seed: the shipped recipe with the paper's eight updates on a rollout batch."""
PENALTIES = ("none", "k1", "k2", "k3")
Estimator = Literal["k1", "k2", "k3"]
COEF = 0.01
"""The paper's for Sudoku."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of dividing likelihoods."""

    name: str
    objective: GSPO | GRPO
    likelihood: Literal["elbo", "mean_field"]
    color: str


ARMS = {
    "sequence-elbo": Arm(
        name="sequence, ELBO (ESPO)", objective=GSPO(clip_low=0.2, clip_high=0.2), likelihood="elbo", color="#1f6fb4"
    ),
    "token-elbo": Arm(
        name="token, ELBO", objective=GRPO(clip_low=0.2, clip_high=0.2), likelihood="elbo", color="#d1641b"
    ),
    "sequence-mean-field": Arm(
        name="sequence, mean field",
        objective=GSPO(clip_low=0.2, clip_high=0.2),
        likelihood="mean_field",
        color="#2b8060",
    ),
    "token-mean-field": Arm(
        name="token, mean field",
        objective=GRPO(clip_low=0.2, clip_high=0.2),
        likelihood="mean_field",
        color="#80519f",
    ),
}
FIRST = "sequence-elbo"
PENALTY_COLORS = {"none": "#56646e", "k1": "#d1641b", "k2": "#1f6fb4", "k3": "#80519f"}


@dataclass(frozen=True, kw_only=True)
class TotalGap:
    """coef * k(sum over units of log pi - log pi_reference) / |y|, averaged over rollouts.

    `ReferenceKL` with k2 sums the squares of units; this squares their sum, as ESPO does.
    """

    name: str = "total_gap"
    coef: float = COEF
    estimator: Estimator = "k2"

    counts = staticmethod(count)
    weights = staticmethod(row_mean)
    traits = penalty_traits("sequence", "reference")

    def gain(self, scores: Scores, step: Step) -> Float[Tensor, "B U"]:
        assert step.reference_logprobs is not None
        ours, theirs = (x.sum(dim=1, keepdim=True) for x in (scores.logprobs, step.reference_logprobs))
        length = step.mask.sum(dim=1, keepdim=True).clamp(min=1)
        return (-self.coef * kl_estimate(ours, theirs, self.estimator) / length).expand_as(step.mask)

    def explain(self, scores: Scores, step: Step) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/espo")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    penalty_seeds: tuple[int, ...] = (1, 2, 3)
    penalty_steps: int = 15
    passes: tuple[int, ...] = (2, 4, 8)
    """Forward passes spent on a likelihood where masks are compared."""
    noise_prompts: int = 16
    noise_draws: int = 24


# ---- the runs


def start_of(plan: Plan, seed: int) -> tuple[str, dict[str, Any]]:
    """The model that every run of a seed starts from, and how it came about."""
    return started_model(replace(plan.tiny, seed=seed), plan.runs / f"start-seed{seed}")


def config_of(plan: Plan, name: str, seed: int, arm: Arm) -> RunConfig:
    folder = plan.runs / f"{name}-seed{seed}"
    policy = plan.tiny.policy
    assert isinstance(policy, DiffusionConfig)
    return replace(
        plan.tiny,
        seed=seed,
        name=folder.name,
        folder=str(folder),
        model=start_of(plan, seed)[0],
        objective=arm.objective,
        policy=replace(policy, likelihood=arm.likelihood),
        cold_start=ColdStart(),
    )


def run_of(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The figures of one arm's finished run."""
    folder = finished_run(config_of(plan, name, seed, ARMS[name]))
    lines = read_metrics(folder)
    steps = [line for line in lines if "reward" in line]
    checks = [line for line in lines if "eval/accuracy" in line]
    return {
        "reward": [line["reward"] for line in steps],
        "grad_norm": [line["grad_norm"] for line in steps],
        "clipped": float(np.mean([line.get("clip_ratio/region_mean", 0.0) for line in steps])),
        "held_out_steps": [line["step"] for line in checks],
        "cells": [line["eval/reward"] for line in checks],
        "grids": [line["eval/accuracy"] for line in checks],
        "seconds": read_summary(folder)["seconds"],
    }


def penalised(plan: Plan, estimator: str, seed: int) -> dict[str, Any]:
    """Gradient norms under a penalty; a run that diverges ends where it did. Without one: the first arm's."""
    if estimator == "none":
        run, steps = run_of(plan, FIRST, seed), plan.penalty_steps
        return {"diverged": False, **{name: run[name][:steps] for name in ("reward", "grad_norm")}, "seconds": 0.0}
    config = replace(
        config_of(plan, f"penalty-{estimator}", seed, ARMS[FIRST]),
        steps=plan.penalty_steps,
        evaluation=replace(plan.tiny.evaluation, every=0),
    )
    folder = Path(config.folder)
    given = Given(terms=(TotalGap(estimator=estimator),))  # type: ignore[arg-type]

    def make() -> dict[str, Any]:
        diverged = False
        try:
            finished_run(config, given=given)
        except ValueError as error:
            if "diverged" not in str(error):
                raise
            diverged = True
        lines = read_metrics(folder)
        steps = [line for line in lines if "reward" in line]
        return {
            "diverged": diverged,
            "reward": [line["reward"] for line in steps],
            "grad_norm": [line["grad_norm"] for line in steps],
            "seconds": sum(line["step_time"] for line in steps),
        }

    return once(plan.runs / "penalties" / f"{estimator}-seed{seed}.json", make)


# ---- masks


def noise_of(plan: Plan, seed: int) -> dict[str, Any]:
    """Over draws, at the weights of the start and against those at the end of the first arm, by masks and passes."""

    def make() -> dict[str, Any]:
        config = config_of(plan, FIRST, seed, ARMS[FIRST])
        ended = replace(config, model=str(finished_run(config) / "model"))
        now, later = (build(c, report=lambda text: None) for c in (config, ended))
        groups = now.source.wave(now.source.next_rows(0, plan.noise_prompts), step=0).groups
        advantage, _ = estimate(now, groups, None, now.advantage.init())
        step = assemble(flatten(groups, advantage, False), now.policy.network.device)
        found = {}
        for passes in plan.passes:
            for is_coupled in (True, False):
                masking = Elbo(draws=passes // 2 if is_coupled else passes, is_coupled=is_coupled)
                scorers = [replace(parts.policy.scorer, masking=masking) for parts in (now, later)]
                name = "coupled" if is_coupled else "independent"
                found[f"{name}-{passes}"] = noise(scorers[0], scorers[1], step, plan.noise_draws)
        for parts in (now, later):
            parts.rewards.close()
        return found

    return once(plan.runs / "noise" / f"seed{seed}.json", make)


def noise(now: ElboScorer, later: ElboScorer, step: Step, draws: int) -> dict[str, float]:
    """Of the bound in nats and of the sequence log-ratio (root mean square over rows of their deviation over draws),
    and of the policy gradient at ratio 1: its variance over draws, of the squared norm of its mean."""
    drawn = [replace(step, payload=step.payload.with_draw(7, draw)) for draw in range(draws)]
    bounds, ratios, gradients = [], [], []
    objective = GSPO()
    for one in drawn:
        old = now.logprobs(one).logprobs
        bounds.append(old.double().sum(dim=1))
        one = replace(one, old_logprobs=old)
        ratios.append(sequence_log_ratio(later.logprobs(one), one)[:, 0].double())
        gradients.append(gradient(now, one, objective))
    flat = torch.stack(gradients).double()
    mean = flat.mean(dim=0)
    variance = (flat - mean).square().sum(dim=1).sum() / (draws - 1)
    # The square of a mean over draws holds a share of their variance.
    signal = mean.square().sum() - variance / draws
    spread = lambda values: torch.stack(values).var(dim=0).mean().sqrt().item()  # noqa: E731
    return {
        "bound": spread(bounds),
        "log_ratio": spread(ratios),
        "gradient": (variance / signal.clamp(min=1e-30)).item(),
    }


def gradient(scorer: ElboScorer, step: Step, objective: GSPO) -> Tensor:
    """Of the objective at ratio 1, all parameters one after another."""
    weight = objective.weights(step, objective.counts(step))
    parameters = [p for _, p in scorer.network.named_trainable()]
    loss = -(objective.gain(scorer.score(step, "value"), step) * weight).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


# ---- summaries


def last(values: list[float]) -> float:
    """Mean over the last sixth of a run."""
    return float(np.mean(values[-max(len(values) // 6, 1) :]))


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with intervals."""
    return {
        "cells": over_seeds([run["cells"][-1] for run in runs]),
        "grids": over_seeds([run["grids"][-1] for run in runs]),
        "reward_last": over_seeds([last(run["reward"]) for run in runs]),
        "clipped": over_seeds([run["clipped"] for run in runs]),
        "grad_norm": over_seeds([float(np.median(run["grad_norm"])) for run in runs]),
        "largest_grad_norm": over_seeds([max(run["grad_norm"]) for run in runs]),
        "seconds": over_seeds([run["seconds"] for run in runs]),
    }


def penalties_summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "diverged": sum(run["diverged"] for run in runs),
        "grad_norm": over_seeds([float(np.median(run["grad_norm"])) for run in runs if run["grad_norm"]] or [0.0]),
        "largest_grad_norm": over_seeds([max(run["grad_norm"], default=0.0) for run in runs]),
        "reward_last": over_seeds([last(run["reward"]) if run["reward"] else 0.0 for run in runs]),
    }


def paired(part: dict[str, Any], against: dict[str, Any], name: str) -> dict[str, Any]:
    """One arm less the other, seed by seed: both started from the same weights."""
    return over_seeds([a - b for a, b in zip(part[name]["seeds"], against[name]["seeds"], strict=True)])


# ---- picture, tables, record


def draw(record: dict[str, Any], path: Path) -> None:
    figure, axes = grid(1, 4, 15.6, 3.6)
    cells, grids, norms, masks = axes[0]
    for name, arm in ARMS.items():
        runs = record["runs"][name]
        style = {"color": arm.color, "label": arm.name}
        band(cells, runs[0]["held_out_steps"], [run["cells"] for run in runs], **style)
        band(grids, runs[0]["held_out_steps"], [run["grids"] for run in runs], **style)
    for estimator, runs in record["penalty_runs"].items():
        length = min(len(run["grad_norm"]) for run in runs)
        if length:
            lines = [smooth(run["grad_norm"][:length], 1) for run in runs]
            band(norms, range(1, length + 1), lines, color=PENALTY_COLORS[estimator], label=estimator)
    draw_noise(masks, record["noise"])
    norms.set_yscale("log")
    label(cells, "held out, greedy", "step", "share of empty cells")
    label(grids, "held out, greedy", "step", "share of grids solved")
    label(norms, "penalty on the total gap", "step", "gradient norm, mean over updates")
    label(masks, "policy gradient, same completions", "forward passes per likelihood", "variance over draws / signal")
    for axis in axes[0]:
        axis.legend(fontsize=7)
    save(figure, path)


def draw_noise(axis: Axes, noise: dict[str, Any]) -> None:
    for name, color in (("coupled", "#1f6fb4"), ("independent", "#d1641b")):
        found = {int(key.rpartition("-")[2]): value for key, value in noise.items() if key.startswith(name)}
        axis.plot(list(found), [value["gradient"]["mean"] for value in found.values()], "o-", color=color, label=name)
    axis.set_yscale("log")
    axis.set_xticks(list(found))


def markdown(rows: list[list[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rest])


def number(found: dict[str, Any], form: str = ".2g") -> str:
    mean, low, high = (format(found[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(record: dict[str, Any]) -> str:
    """Arms, penalties, masks, as Markdown; differences are from the same weights."""
    first = [["", "cells, greedy", "less the first, points", "grids, greedy", "less the first, points", "clipped",
              "gradient norm, median (largest)", "seconds"]]  # fmt: skip
    first.append(["start", percent(record["start_cells"]), "", percent(record["start_grids"]), *[""] * 4])
    for name, arm in ARMS.items():
        part = record["arms"][name]
        less = [points_of(part[f"less_{what}"]) if name != FIRST else "" for what in ("cells", "grids")]
        norms = f"{part['grad_norm']['mean']:.2f} ({part['largest_grad_norm']['mean']:.2f})"
        first.append([arm.name, percent(part["cells"]), less[0], percent(part["grids"]), less[1],
                      f"{100 * part['clipped']['mean']:.1f} %", norms, f"{part['seconds']['mean']:.0f}"])  # fmt: skip
    second = [["penalty", "runs diverged", "gradient norm, median", "largest of a step", "reward, last steps"]]
    for estimator in PENALTIES:
        part = record["penalties"][estimator]
        second.append([estimator, f"{part['diverged']} of {len(record['penalty_runs'][estimator])}",
                       number(part["grad_norm"]), number(part["largest_grad_norm"]),
                       number(part["reward_last"], ".3f")])  # fmt: skip
    third = [["masks", "passes", "bound, nats", "log-ratio of two policies", "gradient: variance / signal"]]
    for key, part in record["noise"].items():
        name, _, passes = key.rpartition("-")
        third.append([name, passes, number(part["bound"]), number(part["log_ratio"], ".2g"), number(part["gradient"])])
    return "\n\n".join(markdown(rows) for rows in (first, second, third))


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and tables."""
    torch.set_num_threads(1)
    with alone(plan.runs):
        # Seed by seed, so that an unfinished record has whole comparisons.
        made = {(name, seed): run_of(plan, name, seed) for seed in plan.seeds for name in ARMS}
        noises = [noise_of(plan, seed) for seed in plan.seeds]
        pulled = {name: [penalised(plan, name, seed) for seed in plan.penalty_seeds] for name in PENALTIES}
        starts = [start_of(plan, seed)[1] for seed in plan.seeds]
    runs = {name: [made[name, seed] for seed in plan.seeds] for name in ARMS}
    arms = {name: summed_up(found) for name, found in runs.items()}
    for part in arms.values():
        part |= {f"less_{what}": paired(part, arms[FIRST], what) for what in ("cells", "grids")}
    record = {
        "command": "make record-espo",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "start_cells": over_seeds([run["cells"][0] for run in runs[FIRST]]),
        "start_grids": over_seeds([run["grids"][0] for run in runs[FIRST]]),
        "arms": arms,
        "runs": runs,
        "penalty_coef": COEF,
        "penalties": {name: penalties_summed_up(found) for name, found in pulled.items()},
        "penalty_runs": pulled,
        "noise": {
            key: {what: over_seeds([found[key][what] for found in noises]) for what in noises[0][key]}
            for key in noises[0]
        },
        "machine_seconds": sum(part["seconds"] for part in (*made.values(), *starts, *chain(*pulled.values()))),
        "versions": read_summary(plan.runs / f"{FIRST}-seed{plan.seeds[0]}")["versions"],
    }
    draw(record, plan.docs / "images" / "espo.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "espo", record, table(record))
    return record


if __name__ == "__main__":
    main()
