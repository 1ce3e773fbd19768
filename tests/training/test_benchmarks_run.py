"""The recorded comparisons, with a smaller model and a few steps: what they write, and that nothing is made twice."""

import importlib.util
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gspo.config import Checkpoints, ColdStart, Evaluation
from gspo.models import TinyConfig
from gspo.policies.master import AdamW
from gspo.requirements import unmet
from gspo.rewards import RewardConfig
from gspo.sampling import Sampling
from gspo.training.run import start

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "steps": 2,
    "prompts_per_step": 4,
    "group_size": 8,
    "updates_per_step": 4,
    "tiny": TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32),
    # A random model is never right about sums; it is sometimes short, so there is something to learn.
    "rewards": (RewardConfig(name="length", options={"target_tokens": 2}),),
    "sampling": Sampling(max_completion_tokens=4),
    "evaluation": Evaluation(every=1, prompts=4),
    "cold_start": ColdStart(steps=2, batch=8, check_every=1),
}


@pytest.fixture
def script(monkeypatch):
    """A script of benchmarks/ by its name, under a module name of its own; its neighbours are importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


def numbers(value):
    """Every number inside, however deep."""
    if isinstance(value, dict | list | tuple):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def made_at(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in MADE_ONCE}


MADE_ONCE = ("cold-start.json", "summary.json", "metrics.jsonl", "before.json", "held-out.json")


def assert_pictures(folder, names):
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name


def page_with_places(docs, *names):
    """A results page with a stale table in each of its places."""
    docs.mkdir()
    places = [f"<!-- {name} -->\nstale\n<!-- end {name} -->\n" for name in names]
    (docs / "results.md").write_text("head\n" + "between\n".join(places) + "tail\n")
    return docs / "results.md"


def test_gspo_against_grpo(script, tmp_path):
    module = script("reproduce_gspo")
    plan = module.Plan(
        runs=tmp_path / "runs",
        docs=tmp_path / "docs",
        tiny=replace(module.TINY, **SMALL),
        tasks=(module.Task(digits=1, stop_at=1.0),),
        seeds=(1, 2),
        sweep_lrs=(3e-4,),
        clip_scales=(1.0, 100.0),
        text=replace(module.TEXT, **SMALL, model="tiny", data=module.TINY.data),
        text_seeds=(0,),
        length_edges=(1, 3, 4),
    )
    plan = replace(plan, text=replace(plan.text, cold_start=ColdStart(), evaluation=Evaluation(every=0, prompts=0)))
    page = page_with_places(plan.docs, "reproduce-gspo")
    record = module.main(plan)
    assert "1-digit" in page.read_text() and "stale" not in page.read_text()
    assert_pictures(tmp_path / "docs" / "images", ("reproduce-gspo.png", "reproduce-gspo-clipping.png"))
    written = json.loads((tmp_path / "docs" / "records" / "reproduce-gspo.json").read_text())
    assert written.keys() == record.keys()
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    task = written["tasks"]["1-digit"]
    assert {"gspo 0.0003", "grpo 0.0003"} <= task["arms"].keys()
    for arm in task["arms"].values():
        assert arm.keys() >= {"held_out", "reward_last_sixth", "clipped", "sequence_variance", "token_variance"}
        assert arm["clipped"]["mini_batch_1"]["mean"] == 0.0  # the policy has not moved: every ratio is 1
    assert task["arms"]["gspo 0.0003"]["clipped"]["all"]["mean"] > task["arms"]["grpo 0.0003"]["clipped"]["all"]["mean"]
    by_width = written["gspo_clip_range"]["tasks"]["1-digit"]
    assert by_width["1"]["clipped"] > by_width["100"]["clipped"]
    assert written["text"]["after"].keys() == {"gspo", "grpo"}
    assert written["text"]["by_length"]["gspo"][0]["sequence"]["std"] > 0

    before = made_at(plan.runs)
    again = module.main(plan)
    assert made_at(plan.runs) == before and len(before) > 10
    assert again["tasks"] == record["tasks"]


def test_both_objectives_start_from_the_same_weights_and_samples(script, tmp_path):
    module = script("reproduce_gspo")
    plan = module.Plan(runs=tmp_path, tiny=replace(module.TINY, **SMALL), tasks=(module.Task(digits=1, stop_at=1.0),))
    read = script("experiment").read_metrics
    first = [read(module.tiny_run(plan, plan.tasks[0], name, 3e-4, 1))[1] for name in ("gspo", "grpo")]
    assert first[0]["reward"] == first[1]["reward"] and first[0]["entropy"] != 0.0


def test_objectives_and_estimators_on_the_embedded_task(script, tmp_path):
    module = script("objectives")
    plan = module.Plan(
        runs=tmp_path / "runs",
        docs=tmp_path / "docs",
        tiny=replace(module.TINY, **SMALL),
        objectives=("gspo", "grpo", "dr_grpo", "reinforce", "dpo", "trpa"),
        estimators=("rloo", "opo"),
        settings={**module.SETTINGS, "reinforce": {"updates_per_step": 1}, "opo": {"updates_per_step": 1}},
        seeds=(1,),
    )
    names = (*plan.objectives, *plan.estimators)
    page = page_with_places(plan.docs, "objectives", "estimators")
    record = module.main(plan)
    assert_pictures(plan.docs / "images" / "papers", [f"{name}.png" for name in names])
    written = json.loads((plan.docs / "records" / "objectives.json").read_text())
    assert set(written["objectives"]) == set(plan.objectives) and set(written["estimators"]) == set(plan.estimators)
    for name, part in (written["objectives"] | written["estimators"]).items():
        assert part.keys() >= {"held_out", "gain", "less_grpo", "reward", "clipped", "updates", "lr", "advantage"}, name
        assert part["failures"] == [] and all(math.isfinite(n) for n in numbers(part)), name
    text = page.read_text()
    assert text.startswith("head\n") and text.endswith("\ntail\n") and "stale" not in text
    assert text.count("\n| ") == len(names) + 4  # two tables, with a head and a rule each

    before = made_at(plan.runs)
    assert module.main(plan)["objectives"] == record["objectives"]
    assert made_at(plan.runs) == before and len(before) >= 2 * len(names)


def test_every_objective_and_estimator_has_settings_that_a_run_accepts(script):
    module = script("objectives")
    plan = module.Plan()
    assert {"gspo", "gspo_token", "grpo", "dr_grpo", "dapo"} <= set(plan.objectives)
    assert {"group_std", "rloo"} <= set(plan.estimators)
    assert set(plan.settings) <= {*plan.objectives, *plan.estimators}
    for name in (*plan.objectives, *plan.estimators):
        config = module.config_of(plan, name, seed=1)
        assert name in (config.objective.name, config.advantage.name)
        updates = config.updates_per_step * config.epochs
        assert not unmet([config.objective], config.advantage, group_size=8, updates_per_rollout=updates), name


def test_a_run_that_diverges_is_recorded_and_not_tried_again(script, tmp_path):
    module = script("objectives")
    folder = tmp_path / "gspo-seed1"
    small = SMALL | {"cold_start": ColdStart(), "optimizer": AdamW(lr=1e30)}
    config = replace(module.TINY, **small, folder=str(folder))
    said = module.run_or_failure(config, folder)
    assert "diverged" in said
    metrics = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert module.run_or_failure(config, folder) == said
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == metrics


def test_a_run_of_other_settings_is_not_taken_for_this_one(script, tmp_path):
    module = script("reproduce_gspo")
    plan = module.Plan(runs=tmp_path, tiny=replace(module.TINY, **SMALL), tasks=(module.Task(digits=1, stop_at=1.0),))
    module.tiny_run(plan, plan.tasks[0], "gspo", 3e-4, 1)
    other = replace(plan, tiny=replace(plan.tiny, steps=3))
    with pytest.raises(ValueError, match="other settings"):
        module.tiny_run(other, plan.tasks[0], "gspo", 3e-4, 1)


def test_an_interrupted_run_goes_on(script, tmp_path):
    module, experiment = script("objectives"), script("experiment")
    small = SMALL | {"cold_start": ColdStart(), "steps": 3, "checkpoints": Checkpoints(every=1)}
    config = replace(module.TINY, **small, folder=str(tmp_path / "run"))
    start(config)
    whole = [line["reward"] for line in experiment.read_metrics(tmp_path / "run")[1:]]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000003")
    (tmp_path / "run" / "summary.json").unlink()
    experiment.finished_run(config)
    assert [line["reward"] for line in experiment.read_metrics(tmp_path / "run")[1:]] == whole
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"]


def test_an_interval_over_seeds(script):
    over_seeds = script("experiment").over_seeds
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] - found["mean"] == pytest.approx(4.303 / math.sqrt(3))
    assert over_seeds([1.0, 3.0]) == {"mean": 2.0, "low": 1.0, "high": 3.0, "seeds": [1.0, 3.0]}
