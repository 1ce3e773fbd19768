"""The records of representation models and of image tokens, in small: what they write, and what is made once."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_benchmarks_run import assert_pictures, made_at, numbers, page_with_places, script  # noqa: F401

from gspo.config import Checkpoints, ColdStart, Evaluation
from gspo.models import TinyConfig
from gspo.tasks.digit_images import ALPHABET

SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32}


def small_representation(module, folder, **more):
    tiny = replace(
        module.TINY,
        steps=2,
        prompts_per_step=8,
        updates_per_step=2,
        tiny=TinyConfig(**SMALL),
        cold_start=ColdStart(steps=2, batch=8),
        evaluation=Evaluation(every=1, prompts=8),
        data=replace(module.TINY.data, held_out_prompts=20, options={"labelled": 40}),
    )
    return module.Plan(runs=folder / "runs", docs=folder / "docs", tiny=tiny, rates=(1e-3, 3e-3), **more)


def test_grpo_rm_against_cross_entropy(script, tmp_path):  # noqa: F811
    module = script("representation")
    plan = small_representation(module, tmp_path, seeds=(1, 2))
    page = page_with_places(plan.docs, "representation")
    record = module.main(plan)
    assert_pictures(plan.docs / "images", ("representation.png",))
    written = json.loads((plan.docs / "records" / "representation.json").read_text())
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    assert page.read_text().count("\n| ") == 2 + 2 * len(module.ARMS) - 1 and "stale" not in page.read_text()
    assert written["rates"].keys() == module.ARMS.keys() and set(written["rates"].values()) <= {1e-3, 3e-3}
    for name, runs in written["runs"].items():
        assert all(run["steps"] == [0, 1, 2] and len(run["accuracy"]) == 3 for run in runs), name
    for name in list(module.ARMS)[1:]:
        for key in module.MEASURES:
            gaps = np.subtract(*([run[key] for run in written["runs"][arm]] for arm in (name, "cross-entropy")))
            assert written["arms"][name]["less_base"][key]["seeds"] == pytest.approx(gaps.tolist(), abs=1e-4)

    before = made_at(plan.runs)
    assert module.main(plan)["arms"] == record["arms"] and made_at(plan.runs) == before


def small_images(module, folder, **more):
    tiny = replace(
        module.TINY,
        steps=2,
        prompts_per_step=4,
        group_size=4,
        updates_per_step=2,
        tiny=TinyConfig(**SMALL, alphabet=ALPHABET),
        cold_start=ColdStart(steps=2, batch=8, check_every=100),
        evaluation=Evaluation(every=1, prompts=2, samples=1, temperature=1.0),
        checkpoints=Checkpoints(every=1000),
        data=replace(module.TINY.data, held_out_prompts=2),
    )
    return module.Plan(runs=folder / "runs", docs=folder / "docs", tiny=tiny, **more)


def test_dpo_against_grpo_for_images(script, tmp_path, monkeypatch):  # noqa: F811
    module = script("images")
    monkeypatch.setattr(module, "SAMPLES", 1)
    monkeypatch.setattr(module, "JUDGES", ("weak",))  # the strong one takes seconds to learn
    plan = small_images(module, tmp_path, seeds=(1,))
    page = page_with_places(plan.docs, "images")
    record = module.main(plan)
    assert_pictures(plan.docs / "images", ("images.png",))
    written = json.loads((plan.docs / "records" / "images.json").read_text())
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    assert page.read_text().count("\n| ") == 2 + 1 + (4 + 2) and "stale" not in page.read_text()
    assert written["images"] == 2 * 4 * 4
    offline = module.config_of(plan, "dpo-offline", "weak", 1)
    plain = module.config_of(plan, "dpo", "weak", 1)
    for config in (offline, plain):  # as many images and as many updates, however they are spread
        assert config.steps * config.prompts_per_step * config.group_size == 32
        assert config.steps * config.updates_per_step == 4
    assert record["runs"]["dpo-offline-weak"][0]["held_out_steps"] == [0, 2]
