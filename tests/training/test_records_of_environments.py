"""The records of drafts and of turns, in small: what they write, what is counted, and that nothing is made twice."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_benchmarks_run import assert_pictures, made_at, numbers, page_with_places, script  # noqa: F401

from gspo.config import Checkpoints, ColdStart, Evaluation
from gspo.envs import Action
from gspo.envs.circuit import Counting
from gspo.envs.circuits import op_amp
from gspo.envs.sizing import Sizing
from gspo.models import TinyConfig
from gspo.rewards import RewardConfig
from gspo.samplers.fake import FakeSampler
from gspo.sampling import Sampling
from gspo.training.parts import Given, build

SMALL = {
    "steps": 2,
    "prompts_per_step": 4,
    "group_size": 4,
    "updates_per_step": 2,
    "tiny": TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32),
    "evaluation": Evaluation(every=1, prompts=4, temperature=1.0),
    "cold_start": ColdStart(steps=2, batch=8, check_every=100),
    "checkpoints": Checkpoints(every=1000),
}


def small_drafts(module, folder, **more):
    # A random model is never right about sums; it is sometimes short, so there is something to learn.
    tiny = replace(
        module.TINY,
        **{**SMALL, "group_size": 8},
        rewards=(RewardConfig(name="length", options={"target_tokens": 2}),),
        sampling=Sampling(max_completion_tokens=4),
    )
    return module.Plan(runs=folder / "runs", docs=folder / "docs", tiny=tiny, **more)


def test_drafts_against_plain_groups(script, tmp_path):  # noqa: F811
    module, read = script("drafts"), script("experiment").read_metrics
    plan = small_drafts(module, tmp_path, seeds=(1, 2))
    page = page_with_places(plan.docs, "drafts")
    record = module.main(plan)
    assert_pictures(plan.docs / "images", ("drafts.png",))
    written = json.loads((plan.docs / "records" / "drafts.json").read_text())
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    assert page.read_text().count("\n| ") == 2 + 1 + 4 and "stale" not in page.read_text()  # head, start, four arms

    assert written["arms"].keys() == module.ARMS.keys()
    for name, runs in written["runs"].items():
        for run in runs:
            assert run["sampled"] == [4 * 8, 2 * 4 * 8], name  # equal, drafts and refinements together
            assert len(run["best_draft"]) == (2 if "igrpo" in name else 0)
            assert all(best >= mean for best, mean in zip(run["best_draft"], run["draft"], strict=True))
    for base, drafted in (("grpo", "igrpo"), ("gspo", "igrpo-gspo")):
        ends = [np.array([run["held_out"][-1] for run in written["runs"][name]]) for name in (drafted, base)]
        assert written["arms"][drafted]["less_base"]["held_out"]["seeds"] == pytest.approx(ends[0] - ends[1], abs=1e-4)
    for seed in plan.seeds:  # one start for all: what is held out is answered alike, drafts do not enter into it
        first = [read(plan.runs / f"{name}-seed{seed}")[0] for name in module.ARMS]
        assert all(line["eval/accuracy"] == first[0]["eval/accuracy"] for line in first)
        assert all(line["eval/mean_length"] == first[0]["eval/mean_length"] for line in first)

    before = made_at(plan.runs)
    assert module.main(plan)["arms"].keys() == record["arms"].keys()
    assert made_at(plan.runs) == before and len(before) > 8


def test_the_start_has_seen_drafts_and_the_arms_differ_in_nothing_else(script, tmp_path):  # noqa: F811
    module = script("drafts")
    plan = small_drafts(module, tmp_path)
    assert {arm.collector.drafts.number for name, arm in module.ARMS.items() if "igrpo" in name} == {4}
    for name, arm in module.ARMS.items():
        assert arm.base == "" or module.ARMS[arm.base].objective == arm.objective, name
    characters = set(plan.tiny.tiny.alphabet)
    assert set(module.DRAFTS.drafts.template.replace("{draft}", "").replace("{prompt}", "")) <= characters


def small_turns(module, folder, **more):
    # A random model writes no proposal that can be read, so the environment alone would give it nothing to learn.
    short = (RewardConfig(name="length", options={"target_tokens": 2}),)
    tiny = replace(module.TINY, **SMALL, rewards=short, data=replace(module.TINY.data, held_out_prompts=4))
    options = {**tiny.data.options, "size": 16, "tries": 50, "examples": 24}
    return module.Plan(
        runs=folder / "runs",
        docs=folder / "docs",
        tiny=replace(tiny, data=replace(tiny.data, options=options)),
        episodes=2,
        candidates=8,
        choosing=4,
        **more,
    )


def test_turns_against_trajectories_and_search(script, tmp_path):  # noqa: F811
    pytest.importorskip("optuna")
    module = script("turn_forks")
    plan = small_turns(module, tmp_path, seeds=(1, 2))
    page = page_with_places(plan.docs, "turn-forks")
    record = module.main(plan)
    assert_pictures(plan.docs / "images", ("turn-forks.png",))
    written = json.loads((plan.docs / "records" / "turn-forks.json").read_text())
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    assert page.read_text().count("\n| ") == 2 + 2 * (len(module.NAMES) + 1) + 2 + 3 * len(module.SPECS)
    assert written["tested"].keys() == module.NAMES.keys()
    # At most T x G per task in both ways: what is cut before its end ends an episode.
    per_run = plan.tiny.steps * plan.tiny.prompts_per_step * plan.turns * plan.tiny.group_size
    spent = {name: calls["mean"] for name, calls in written["beforehand"].items()}
    for name, calls in written["calls"].items():
        assert 0 < calls["mean"] <= per_run, name
        assert spent[name] == pytest.approx(spent["start"] + calls["mean"], rel=1e-4)
    # 24 examples: a witness each, and a turn of feedback each on the mean of 0, 1 and 2.
    assert spent["start"] >= 24 + 24 and spent["tpe"] == spent["random"] == 0 and spent["fixed"] == plan.candidates
    for name in module.NAMES:
        for seed in plan.seeds:
            for kind in module.SPECS:
                rewards = module.tested(plan, name, seed)[kind]
                assert [len(row) for row in rewards] == [plan.budget] * 4, (name, seed)
    for found in written["tested"].values():
        for part in found.values():
            assert 0 <= part["best_few"]["mean"] <= part["best_many"]["mean"] <= 1
            assert part["turn_1"]["mean"] <= part["best_few"]["mean"]
            assert 0 <= part.get("by_other_specs", part["turn_1"])["mean"] <= 1
            assert 0 <= part.get("misled", part["turn_1"])["mean"] <= 1

    before = made_at(plan.runs)
    assert module.main(plan)["tested"] == record["tested"]
    assert made_at(plan.runs) == before and len(before) > 8


def test_a_misled_policy_hears_of_other_specs_and_is_paid_by_its_own(script):  # noqa: F811
    pytest.importorskip("optuna")
    module = script("turn_forks")
    own, other = "gain>=70 gbw>=5 pm>=60 pw<=0.8 sr>=5", "gain>=90 gbw>=1 pm>=80 pw<=0.1 sr>=50"
    factory = Sizing(circuit=op_amp(), turns=2, format="digits", margins=True)
    said = module.Misled(factory=factory, others={own: other})({"specs": own}, 0).step(Action(text="4455445"))
    right, wrong = (factory.assess(factory.circuit.specs(specs), "4455445") for specs in (own, other))
    assert said.reward == right.reward != wrong.reward
    assert said.content == wrong.feedback != right.feedback


@pytest.mark.parametrize("arm", ["turns", "trajectories"])
def test_simulator_calls_are_turns_times_group_for_each_task(script, tmp_path, arm):  # noqa: F811
    """Proposals that are all readable and all different in an episode: each costs one simulation, in both ways."""
    pytest.importorskip("optuna")
    module = script("turn_forks")
    plan = small_turns(module, tmp_path)
    counting = Counting(op_amp().simulator)
    options = {**plan.tiny.environment.options, "turns": plan.turns}
    factory = Sizing(circuit=replace(op_amp(), simulator=counting), **options)
    config = replace(module.config_of(plan, 1), collector=plan.arms[arm])
    parts = build(config, Given(environment=factory), report=lambda text: None)
    renderer = parts.renderer
    say = lambda request, i: (*renderer.encode(f"12345{request.turn}{i}", special=False), renderer.end_id)  # noqa: E731
    episodes = replace(parts.source, sampler=FakeSampler(say, stop_id=renderer.end_id))
    source = replace(parts.collector.source, source=episodes) if arm == "turns" else episodes
    collected = replace(parts.collector, source=source).collect(0, 0)
    assert counting.calls == plan.tiny.prompts_per_step * plan.turns * plan.tiny.group_size
    rewards = [r.reward for group in collected.groups for r in group.rollouts]
    assert len(rewards) == plan.tiny.prompts_per_step * plan.tiny.group_size * (plan.turns if arm == "turns" else 1)
    parts.rewards.close()
