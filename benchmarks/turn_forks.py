"""TL-GRPO (2601.16480) against GRPO on whole trajectories and Optuna's TPE, on op-amp sizing: `make record-turn-forks`.

Both ways of training start from the same weights, see the same specs, and pay for as many simulations: at each of T
turns a group of alternatives behind one history, or a group of whole episodes of T turns. A model from scratch that
knows nothing of circuits ends at one proposal for all specs, so the start has seen worked examples: specs, sizings near
one that meets them with their margins, then that one. What these cost in simulations is in the table.

Afterwards everybody gets the same number of proposals per set of specs, on specs like the training's and on specs
beyond their range: the policies, Optuna's TPE, random proposals, and those fixed proposals that are best on training
specs. Two checks of what a policy reads: its proposals by the specs of another row, and its later turns after the
margins that its proposals have by another row's specs.

Finished runs are skipped, an interrupted one goes on. Writes docs/records/turn-forks.json, docs/images/turn-forks.png
and the table in docs/results.md.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
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
from figures import band, grid, label, save, smooth

from gspo.collectors.episodes import EpisodeSource
from gspo.config import Checkpoints, ColdStart, CollectorConfig, Evaluation, RunConfig, Schedule
from gspo.data import DataConfig, Row, load_dataset
from gspo.envs.circuit import Counting
from gspo.envs.config import EnvironmentConfig
from gspo.envs.loading import load_environment
from gspo.envs.proposals import Assessment, ProposalEnv
from gspo.envs.sizing import Sizing
from gspo.models import TinyConfig
from gspo.objectives import GRPO, AdaptiveEntropy
from gspo.policies.master import AdamW
from gspo.sampling import Sampling
from gspo.tasks.sizing import sizing_of
from gspo.training.evaluate import EVALUATION_STEP
from gspo.training.parts import Parts, build
from gspo.training.run import read_summary
from gspo.types import Group, Rollout

TURNS = 3

TINY = RunConfig(
    threads=1,
    steps=100,
    prompts_per_step=16,
    group_size=8,
    updates_per_step=4,
    layout="shared_prefix",
    tiny=TinyConfig(hidden_size=64, layers=3, heads=4, kv_heads=4, intermediate_size=192),
    objective=GRPO(clip_low=0.2, clip_high=0.27),
    # Without it a trial whose start knew no circuits ended at proposing 5555555 first in 187 of 200 episodes.
    terms=(AdaptiveEntropy(target=0.9, coef=0.03, delta=0.003, coef_max=0.1),),
    sampling=Sampling(temperature=1.0, max_completion_tokens=8),
    optimizer=AdamW(lr=1e-3),
    schedule=Schedule(kind="linear"),
    data=DataConfig(
        task="sizing/op_amp",
        held_out_prompts=100,
        options={"format": "digits", "margins": True, "turns": TURNS, "size": 2000, "examples": 6000},
    ),
    environment=EnvironmentConfig(
        name="op_amp", options={"format": "digits", "margins": True, "turns": TURNS, "value": "max"}, max_turns=TURNS
    ),
    # A start that reads its specs a little: a trial's solved 18 in 240 episodes. No check ends it earlier.
    cold_start=ColdStart(steps=500, batch=64, lr=2e-3, stop_at=1.0, check_every=1000),
    evaluation=Evaluation(every=20, prompts=100, temperature=1.0),
    checkpoints=Checkpoints(every=1000, save_rollouts_every=1000),
    trackers=(),
)
"""Every run, but for arm and seed. A trajectory is worth its best turn's reward."""

ARMS = {"trajectories": CollectorConfig(), "turns": CollectorConfig(forks=True, continuation="first")}
NAMES = {
    "random": "random proposals",
    "fixed": "fixed proposals, best on training specs",
    "tpe": "Optuna's TPE",
    "start": "policy, cold start only",
    "trajectories": "policy, GRPO on whole trajectories",
    "turns": "policy, TL-GRPO",
}
SPECS = {"trained": "specs of the training's range", "transfer": "specs beyond it"}
SOLVED = 1 - 1e-9
"""A reward from which on every spec is met."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run; a test passes smaller numbers."""

    runs: Path = Path("runs/turn-forks")
    docs: Path = ROOT / "docs"
    tiny: RunConfig = TINY
    arms: dict[str, CollectorConfig] = field(default_factory=lambda: ARMS)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    episodes: int = 8
    """Of a policy per set of specs at test time; others get as many proposals as these have turns."""
    candidates: int = 1000
    """Random proposals that the fixed ones are chosen from."""
    choosing: int = 64
    """Training specs that they are chosen on."""

    @property
    def turns(self) -> int:
        return self.tiny.environment.max_turns

    @property
    def budget(self) -> int:
        """Most proposals per set of specs."""
        return self.turns * self.episodes


def config_of(plan: Plan, seed: int, transfer: bool = True) -> RunConfig:
    options = {**plan.tiny.data.options, "transfer": transfer}
    return replace(plan.tiny, seed=seed, data=replace(plan.tiny.data, options=options))


def run_of(plan: Plan, name: str, seed: int) -> Path:
    """The finished run of one arm."""
    folder = plan.runs / f"{name}-seed{seed}"
    config = replace(
        config_of(plan, seed),
        name=folder.name,
        folder=str(folder),
        model=start_of(plan, seed)[0],
        collector=plan.arms[name],
        cold_start=ColdStart(),
    )
    return finished_run(config)


def start_of(plan: Plan, seed: int) -> tuple[str, dict[str, Any]]:
    return started_model(config_of(plan, seed), plan.runs / f"start-seed{seed}")


def example_calls(plan: Plan, seed: int) -> int:
    """Simulations behind the cold start's worked examples: sizings drawn until one is in range, and feedback."""

    def count() -> dict[str, Any]:
        data, factory = config_of(plan, seed).data, factory_of(plan)
        counting = Counting(factory.circuit.simulator)
        counted = replace(factory.circuit, simulator=counting)
        examples = sizing_of(counted, data.task, data.options, seed, held_out_prompts=0).cold_start
        return {"examples": sum(1 for _ in examples), "calls": counting.calls}

    return once(plan.runs / f"start-seed{seed}" / "examples.json", count)["calls"]


def factory_of(plan: Plan) -> Sizing:
    factory = load_environment(plan.tiny.environment)
    assert isinstance(factory, Sizing)
    return factory


# ---- rewards of proposals, [sets of specs, budget] in the order of asking


def of_policy(plan: Plan, model: str, seed: int) -> dict[str, Any]:
    """By kind of specs, what a policy's turns earned: its episodes one after the other, sampled at temperature 1.

    `others`: what the same proposals would have earned by the next row's specs: less, if the policy reads its own.
    `misled`: what turns after the first earned when all feedback was by the next row's specs: less, if it is read.
    """
    began, factory = time.perf_counter(), factory_of(plan)
    found: dict[str, Any] = {"others": {}, "misled": {}}
    for kind in SPECS:
        parts = build(replace(config_of(plan, seed, kind == "transfer"), model=model), report=lambda text: None)
        source = replace(parts.evaluation_source(1.0), group_size=plan.episodes)
        assert isinstance(source, EpisodeSource)
        rows = list(parts.dataset.held_out)
        specs = [row["specs"] for row in rows]
        others = dict(zip(specs, specs[1:] + specs[:1], strict=True))
        groups = source.wave(list(enumerate(rows)), EVALUATION_STEP).groups
        found[kind] = rewards_of(plan, groups)
        by_others = [by_specs(factory, others[group.columns["specs"]], parts, group) for group in groups]
        found["others"][kind] = float(np.mean(by_others))
        misled = replace(source, factory=Misled(factory=factory, others=others))
        later = np.array(rewards_of(plan, misled.wave(list(enumerate(rows)), EVALUATION_STEP).groups))
        found["misled"][kind] = float(later.reshape(-1, plan.turns)[:, 1:].mean())
        parts.rewards.close()
    return {**found, "seconds": time.perf_counter() - began}


@dataclass(frozen=True, kw_only=True)
class Misled:
    """The environment with right rewards and wrong feedback: by the specs of another row."""

    factory: Sizing
    others: Mapping[str, str]

    def __call__(self, row: Row, seed: int) -> ProposalEnv:
        specs = self.factory.circuit.specs(row["specs"])
        others = self.factory.circuit.specs(self.others[row["specs"]])

        def assess(text: str) -> Assessment:
            return replace(self.factory.assess(specs, text), feedback=self.factory.assess(others, text).feedback)

        return ProposalEnv(assess, turns=self.factory.turns, value=self.factory.value)


def rewards_of(plan: Plan, groups: Sequence[Group]) -> list[list[float]]:
    return [[reward for r in group.rollouts for reward in earned(plan, r)] for group in groups]


def by_specs(factory: Sizing, specs: str, parts: Parts, group: Group) -> float:
    """The mean reward of a group's proposals by these specs."""
    wanted = factory.circuit.specs(specs)
    said = [parts.renderer.text(turn.completion.ids) for r in group.rollouts for turn in r.turns]
    return float(np.mean([factory.assess(wanted, text).reward for text in said]))


def earned(plan: Plan, rollout: Rollout) -> list[float]:
    """Rewards of an episode's turns; 0 for those that it did not come to, cut in a proposal without an end."""
    rewards = [turn.reward for turn in rollout.turns]
    return rewards + [0.0] * (plan.turns - len(rewards))


def of_search(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The same for what reads no specs and only hears rewards."""
    began, found = time.perf_counter(), {}
    factory = factory_of(plan)
    fixed = fixed_proposals(plan, factory, seed) if name == "fixed" else []
    for kind in SPECS:
        rows = load_dataset(config_of(plan, seed, kind == "transfer").data, seed).held_out
        found[kind] = [searched(plan, factory, name, fixed, row, (seed, number)) for number, row in enumerate(rows)]
    return {**found, "seconds": time.perf_counter() - began}


def searched(
    plan: Plan, factory: Sizing, name: str, fixed: Sequence[str], row: Row, key: tuple[int, int]
) -> list[float]:
    """One set of specs: rewards of random proposals, of fixed ones, or of TPE's."""
    specs = factory.circuit.specs(row["specs"])
    assess = lambda text: factory.assess(specs, text).reward  # noqa: E731
    if name == "fixed":
        return [assess(text) for text in fixed]
    if name == "random":
        return [assess(text) for text in random_proposals(factory, plan.budget, key)]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    levels = [(p.name, p.levels - 1) for p in factory.circuit.parameters]

    def value(trial: optuna.Trial) -> float:
        return assess("".join(str(trial.suggest_int(name, 0, top)) for name, top in levels))

    sampler = optuna.samplers.TPESampler(seed=1000 * key[0] + key[1])
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(value, n_trials=plan.budget)
    return [trial.value for trial in study.trials if trial.value is not None]


def random_proposals(factory: Sizing, number: int, key: tuple[int, ...]) -> list[str]:
    drawn = np.random.default_rng(key).integers(0, [p.levels for p in factory.circuit.parameters], size=(number, 7))
    return ["".join(map(str, levels)) for levels in drawn]


def fixed_proposals(plan: Plan, factory: Sizing, seed: int) -> list[str]:
    """The random proposal that is best on training specs, then again and again the one that adds most to the best."""
    train = load_dataset(config_of(plan, seed).data, seed).train
    specs = [factory.circuit.specs(train[i]["specs"]) for i in range(plan.choosing)]
    candidates = random_proposals(factory, plan.candidates, (seed,))
    rewards = np.array([[factory.assess(one, text).reward for one in specs] for text in candidates])
    best, chosen = np.zeros(len(specs)), []
    for _ in range(plan.budget):
        chosen.append(int(np.maximum(rewards, best).mean(axis=1).argmax()))
        best = np.maximum(best, rewards[chosen[-1]])
    return [candidates[i] for i in chosen]


# ---- comparing


def tested(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """Rewards of a seed's proposals by one way of making them; made once."""
    if name in ("random", "fixed", "tpe"):
        return once(plan.runs / f"{name}-seed{seed}.json", lambda: of_search(plan, name, seed))
    if name == "start":
        model = start_of(plan, seed)[0]
        return once(plan.runs / f"start-seed{seed}" / "tested.json", lambda: of_policy(plan, model, seed))
    folder = run_of(plan, name, seed)
    return once(folder / "tested.json", lambda: of_policy(plan, str(folder / "model"), seed))


def scores(plan: Plan, rewards: list[list[float]], is_policy: bool) -> dict[str, float]:
    """Best reward and share solved after one episode's proposals and after all; a policy's, over its episodes."""
    every = np.array(rewards)
    few = every.reshape(len(every), -1, plan.turns) if is_policy else every[:, None, : plan.turns]
    out = {
        "best_few": float(few.max(axis=2).mean()),
        "solved_few": float((few.max(axis=2) >= SOLVED).mean()),
        "best_many": float(every.max(axis=1).mean()),
        "solved_many": float((every.max(axis=1) >= SOLVED).mean()),
    }
    return out | {f"turn_{t + 1}": float(few[:, :, t].mean()) for t in range(plan.turns)}


def summed_up(plan: Plan, found: list[dict[str, Any]], is_policy: bool) -> dict[str, Any]:
    """By kind of specs, means over seeds with intervals."""
    out = {}
    for kind in SPECS:
        each = [scores(plan, part[kind], is_policy) for part in found]
        out[kind] = {name: over_seeds([one[name] for one in each]) for name in each[0]}
        if is_policy:
            out[kind]["by_other_specs"] = over_seeds([part["others"][kind] for part in found])
            out[kind]["misled"] = over_seeds([part["misled"][kind] for part in found])
    return out


def training_of(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """What one run's metrics say: reward, answers of the environment, held-out reward beyond the range."""
    folder = run_of(plan, name, seed)
    lines = read_metrics(folder)
    steps, checks = [x for x in lines if "reward" in x], [x for x in lines if "eval/reward" in x]
    episodes = plan.tiny.prompts_per_step * plan.tiny.group_size
    calls = [line.get("forks/environment_calls", line["environment/turns"] * episodes) for line in steps]
    return {
        "calls": float(sum(calls)),
        "reward": [line["reward"] for line in steps],
        "entropy": known([line.get("entropy", math.nan) for line in steps]),
        "held_out_steps": [line["step"] for line in checks],
        "held_out": [line["eval/reward"] for line in checks],
        "seconds_per_step": float(np.median([line["step_time"] - line.get("time/evaluate", 0.0) for line in steps])),
        "seconds": read_summary(folder)["seconds"],
    }


def known(values: list[float]) -> list[float]:
    """With the value before it in place of a missing one, as of a step in which all alternatives earned the same."""
    found: list[float] = []
    for value in values:
        found.append(value if value == value else (found or [0.0])[-1])
    return found


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """a - b by seed: the policies of a seed started from the same weights."""
    return {
        kind: {
            name: over_seeds([x - y for x, y in zip(a[kind][name]["seeds"], b[kind][name]["seeds"], strict=True)])
            for name in a[kind]
        }
        for kind in a
    }


# ---- picture, table, record


def draw(record: dict[str, Any], path: Path) -> None:
    figure, axes = grid(1, 3, 12.6, 3.6)
    left, middle, right = axes[0]
    colors = {"turns": "#1f6fb4", "trajectories": "#d1641b"}
    for name, runs in record["training"].items():
        style = {"color": colors.get(name, "0.4"), "label": NAMES.get(name, name).removeprefix("policy, ")}
        calls = np.linspace(0, runs[0]["calls"] / 1e3, len(runs[0]["reward"]) + 1)
        checks = [calls[step] for step in runs[0]["held_out_steps"]]
        band(left, checks, [run["held_out"] for run in runs], marker="o", ms=3, **style)
        band(middle, calls[1:], [smooth(run["entropy"], 5) for run in runs], **style)
        found = [record["tested"][name]["trained"][f"turn_{t + 1}"] for t in range(record["turns"])]
        right.plot(range(1, record["turns"] + 1), [f["mean"] for f in found], marker="o", ms=3, **style)
    for axis in axes[0]:
        axis.legend(fontsize=7)
    calls = "simulations while training, thousands"
    label(left, "specs beyond the training's range", calls, f"best reward of {record['turns']} turns")
    label(middle, "entropy of the trained turns", calls, "nats per token, 5 steps")
    label(right, "mean reward by turn", "turn", "specs of the training's range")
    right.set_xticks(range(1, record["turns"] + 1))
    save(figure, path)


def table(record: dict[str, Any]) -> str:
    """Every way of proposing, at one episode's proposals and at those of all episodes; and what policies read."""
    heads = ["proposals", "", "simulations beforehand"]
    heads += [f"{what}, {specs}" for specs in SPECS.values() for what in ("best reward", "solved")]
    rows = [heads, ["---"] * len(heads)]
    for many, number in (("few", record["turns"]), ("many", record["budget"])):
        for name, found in record["tested"].items():
            shown = [percent(found[kind][f"{what}_{many}"]) for kind in SPECS for what in ("best", "solved")]
            rows.append([str(number), NAMES.get(name, name), f"{record['beforehand'][name]['mean']:,.0f}", *shown])
        shown = [points_of(record["difference"][k][f"{w}_{many}"]) for k in SPECS for w in ("best", "solved")]
        rows.append([str(number), "TL-GRPO less whole trajectories, points", "", *shown])
    turns = {f"turn_{t + 1}": f"turn {t + 1}" for t in range(record["turns"])}
    checks = {"by_other_specs": "all turns, by another row's specs", "misled": "turns after the first, misled"}
    means = [["mean reward", "specs", *turns.values(), *checks.values()]]
    means.append(["---"] * len(means[0]))
    for name, found in record["tested"].items():
        for kind, specs in SPECS.items():
            if "misled" in found[kind]:
                shown = [percent(found[kind][key]) for key in (*turns, *checks)]
                means.append([NAMES.get(name, name), specs, *shown])
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in (rows, means))


def beforehand(plan: Plan, training: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Simulations that a way of proposing had paid for before it saw the specs that it is tested on, over seeds."""
    examples = [example_calls(plan, seed) for seed in plan.seeds]
    none = [0] * len(examples)
    trained = {
        name: [calls + run["calls"] for calls, run in zip(examples, runs, strict=True)]
        for name, runs in training.items()
    }
    spent = {"random": none, "fixed": [plan.candidates] * len(examples), "tpe": none, "start": examples, **trained}
    return {name: over_seeds(calls) for name, calls in spent.items()}


def main(plan: Plan = Plan()) -> dict[str, Any]:
    """Runs what is missing, then writes record, picture and table."""
    torch.set_num_threads(1)
    names = [name for name in NAMES if name not in ARMS] + list(plan.arms)
    with alone(plan.runs):
        # Seed by seed, so that an unfinished record has whole comparisons.
        made = {(name, seed): tested(plan, name, seed) for seed in plan.seeds for name in names}
        training = {name: [training_of(plan, name, seed) for seed in plan.seeds] for name in plan.arms}
        starts = [start_of(plan, seed)[1] for seed in plan.seeds]
    policies = ("start", *plan.arms)
    found = {name: summed_up(plan, [made[name, s] for s in plan.seeds], name in policies) for name in names}
    spent = [
        part["seconds"] for part in (*made.values(), *starts, *(run for runs in training.values() for run in runs))
    ]
    record = {
        "command": "make record-turn-forks",
        "seeds": plan.seeds,
        "steps": plan.tiny.steps,
        "turns": plan.turns,
        "budget": plan.budget,
        "calls": {name: over_seeds([run["calls"] for run in runs]) for name, runs in training.items()},
        "beforehand": beforehand(plan, training),
        "tested": found,
        "difference": difference(found["turns"], found["trajectories"]),
        "training": training,
        "machine_seconds": sum(spent),
        "versions": {**read_summary(run_of(plan, "turns", plan.seeds[0]))["versions"], "optuna": optuna.__version__},
    }
    draw(record, plan.docs / "images" / "turn-forks.png")
    print(f"{record['machine_seconds'] / 60:.1f} min")
    put_record(plan.docs, "turn-forks", record, table(record))
    return record


if __name__ == "__main__":
    main()
