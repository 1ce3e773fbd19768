"""The record of ESPO in small: what it writes, that nothing is made twice, what its penalty and its noise are."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_benchmarks_run import assert_pictures, made_at, numbers, page_with_places, script  # noqa: F401

from gspo.config import Checkpoints, ColdStart, Evaluation
from gspo.functional import _step
from gspo.models import TinyConfig
from gspo.types import Scores


def small(module, folder, **more):
    tiny = replace(
        module.TINY,
        steps=2,
        prompts_per_step=4,
        group_size=4,
        epochs=2,
        tiny=TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=24),
        evaluation=Evaluation(every=1, prompts=4),
        cold_start=ColdStart(steps=12, batch=16, lr=4e-3, check_every=100),  # digits, so that cells are hit
        checkpoints=Checkpoints(every=1000),
    )
    few = {"penalty_seeds": (1,), "penalty_steps": 2, "passes": (2, 4), "noise_prompts": 4, "noise_draws": 3}
    return module.Plan(runs=folder / "runs", docs=folder / "docs", tiny=tiny, **few, **more)


def test_the_record(script, tmp_path):  # noqa: F811
    module, read = script("espo"), script("experiment").read_metrics
    plan = small(module, tmp_path, seeds=(1, 2))
    page = page_with_places(plan.docs, "espo")
    record = module.main(plan)
    assert_pictures(plan.docs / "images", ("espo.png",))
    written = json.loads((plan.docs / "records" / "espo.json").read_text())
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    lines = page.read_text().count("\n| ")
    assert lines == (2 + 1 + 4) + (2 + 4) + (2 + 2 * 2) and "stale" not in page.read_text()

    for seed in plan.seeds:  # one start for all
        first = [read(plan.runs / f"{name}-seed{seed}")[0] for name in module.ARMS]
        assert all(line["eval/reward"] == first[0]["eval/reward"] for line in first)
    for name in module.ARMS:
        ends = [np.array([run["cells"][-1] for run in written["runs"][n]]) for n in (name, module.FIRST)]
        assert written["arms"][name]["less_cells"]["seeds"] == pytest.approx(ends[0] - ends[1], abs=1e-4)
    norms = {name: runs[0]["grad_norm"] for name, runs in written["penalty_runs"].items()}
    # In the first update the policy is the reference: k2 and k3 have no gradient there, k1 has.
    assert all(len(found) == 2 for found in norms.values()) and norms["k1"][0] != norms["none"][0]

    before = made_at(plan.runs)
    assert module.main(plan)["arms"].keys() == record["arms"].keys()
    assert made_at(plan.runs) == before and len(before) > 8


def test_the_arms_differ_in_ratio_and_likelihood_alone(script, tmp_path):  # noqa: F811
    module = script("espo")
    plan = small(module, tmp_path, seeds=(1,))
    ways = {(arm.objective.name, arm.likelihood) for arm in module.ARMS.values()}
    assert len(ways) == 4 and {arm.objective.clip_high for arm in module.ARMS.values()} == {0.2}
    assert module.TINY.epochs == 8 and module.TINY.group_size == 6 and len(module.Plan().seeds) >= 5
    assert plan.tiny.policy.is_coupled


@pytest.mark.parametrize("estimator", ("k1", "k2", "k3"))
def test_the_penalty_is_on_the_total_gap(script, estimator):  # noqa: F811
    """By hand on two rows of different length, value and gradient."""
    module = script("espo")
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-1.2, -1.5, -0.9], [-2.0, 0.0, 0.0]], dtype=torch.float64)
    step = replace(_step(mask, None, None, None, None, None, None, None), reference_logprobs=reference)
    term = module.TotalGap(coef=0.5, estimator=estimator)
    loss = -(term.gain(Scores(logprobs=logprobs), step) * term.weights(step, term.counts(step))).sum()
    loss.backward()
    gaps = [-3.5 + 3.6, -3.0 + 2.0]
    value = {"k1": lambda g: g, "k2": lambda g: g * g / 2, "k3": lambda g: math.exp(-g) + g - 1}[estimator]
    slope = {"k1": lambda g: 1.0, "k2": lambda g: g, "k3": lambda g: 1 - math.exp(-g)}[estimator]
    assert loss.item() == pytest.approx(0.5 * (value(gaps[0]) / 3 + value(gaps[1])) / 2)
    assert logprobs.grad[0].tolist() == pytest.approx([0.5 * slope(gaps[0]) / 3 / 2] * 3)
    assert logprobs.grad[1, 0].item() == pytest.approx(0.5 * slope(gaps[1]) / 2)
