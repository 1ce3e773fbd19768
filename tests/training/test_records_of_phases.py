"""The recorded comparisons of phases and of tools, with a smaller model and a few steps."""

import json
import math
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_benchmarks_run import assert_pictures, made_at, numbers, page_with_places, script  # noqa: F401

from gspo.config import ColdStart, Evaluation
from gspo.models import TinyConfig
from gspo.rewards import RewardConfig
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training.folder import RunFolder
from gspo.training.phased import schedule
from gspo.training.run import start
from gspo.verifiers import Rules

SMALL = TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32)


def small_loop(module, **settings):
    """Two rounds, paid for being short: an untrained model is never right about sums, and there must be pairs."""
    explore, align = module.EXPLORE, module.ALIGN
    return replace(
        module.LOOP,
        steps=6,
        prompts_per_step=4,
        tiny=replace(SMALL, alphabet=module.LOOP.tiny.alphabet),
        rewards=(RewardConfig(name="length", options={"target_tokens": 2}),),
        sampling=Sampling(max_completion_tokens=4),
        cold_start=ColdStart(steps=2, batch=8, check_every=1),
        data=replace(module.LOOP.data, held_out_prompts=6),
        checkpoints=replace(module.LOOP.checkpoints, every=3),
        phase=(
            replace(explore, steps=2),
            replace(
                align,
                steps=1,
                verifier=Rules(correct_at=-0.5, max_repetition=1.0),
                settings={**align.settings, "prompts_per_step": 4},
            ),
        ),
        **settings,
    )


def test_the_loop_against_gspo_alone(script, tmp_path):  # noqa: F811
    module = script("veripo")
    plan = module.Plan(runs=tmp_path / "runs", docs=tmp_path / "docs", loop=small_loop(module), seeds=(1, 2))
    page = page_with_places(plan.docs, "veripo")
    record = module.main(plan)
    text = page.read_text()
    assert text.startswith("head\n") and text.endswith("\ntail\n") and "stale" not in text
    assert text.count("\n| ") == 2 + 2 * len(module.MEASURES) + 1
    assert_pictures(plan.docs / "images", ("veripo.png",))
    written = json.loads((plan.docs / "records" / "veripo.json").read_text())
    assert written.keys() == record.keys() and all(math.isfinite(n) for n in numbers(written))
    loop, single = written["arms"]["veripo"], written["arms"]["gspo"]
    assert loop["sampled_start"] == single["sampled_start"]  # the same weights, the same questions, the same streams
    for run in loop["runs"]:
        assert [found["step"] for found in run["checkpoints"]] == [0, 3, 6]
        assert len(run["rounds"]) == 2 and len(run["seconds"]["explore"]) == 4 and len(run["seconds"]["align"]) == 2
        assert all(found["accuracy"] + found["consistency"] + found["reflective"] > 0 for found in run["rounds"])
    assert all(not run["rounds"] and not run["seconds"]["align"] for run in single["runs"])
    assert single["checkpoint_seconds"][0] == 0.0 and len(written["align_seconds"]) == 2
    assert not list(plan.runs.glob("*-seed?/checkpoints"))

    # Equal time: the nearest whole number of explore steps.
    assert abs(single["seconds"] - loop["seconds"]) <= 0.5001 * written["costs"]["explore"]
    assert {run["checkpoints"][-1]["step"] for run in single["runs"]} == {single["steps"]}

    before = made_at(plan.runs)
    again = module.main(plan)
    assert made_at(plan.runs) == before and len(before) == 2 * (1 + 2 * 3)
    assert again["arms"] == record["arms"]


def test_the_clock_charges_verifying_to_the_phase_that_reads(script):  # noqa: F811
    module = script("veripo")
    costs = {"explore": 2.0, "align": 0.5, "verify": 0.25}
    loop = small_loop(module)
    assert module.clock(loop, costs).tolist() == [0.0, 2.0, 4.0, 4.75, 6.75, 8.75, 9.5]
    assert module.clock(replace(loop, phase=(), steps=2), costs).tolist() == [0.0, 2.0, 4.0]
    per = module.per_item(module.Plan(loop=loop), costs)
    assert per["explore"] == 2.0 / 32 and per["align"] == 0.5 / 8 and per["align_with_verifier"] == 0.75 / 8
    assert per["explore_over_align"] == 1.0


def test_the_align_phase_samples_nothing(script, tmp_path, monkeypatch):  # noqa: F811
    module = script("veripo")
    loop = small_loop(module, folder=str(tmp_path / "run"))
    sampled, sample = Counter(), InProcess.sample_each

    def counted(self, requests):
        sampled.update(request.step for request in requests)
        return sample(self, requests)

    monkeypatch.setattr(InProcess, "sample_each", counted)
    start(replace(loop, cold_start=ColdStart()))
    exploring = [
        step for span in schedule(loop) if span.phase.name == "explore" for step in range(span.start, span.end)
    ]
    assert sampled == Counter(dict.fromkeys(exploring, loop.prompts_per_step))
    pairs = pq.read_table(RunFolder(tmp_path / "run").rollouts / "step_000003.parquet").to_pylist()
    assert sorted(row["reward"] for row in pairs) == [0.0] * 4 + [1.0] * 4


def test_with_tools_and_without(script, tmp_path):  # noqa: F811
    module = script("tools")
    config = replace(
        module.WITH_TOOLS,
        steps=2,
        prompts_per_step=4,
        tiny=replace(SMALL, alphabet=module.WITH_TOOLS.tiny.alphabet),
        data=replace(module.WITH_TOOLS.data, held_out_prompts=6),
        cold_start=ColdStart(steps=20, batch=32, lr=1e-2, check_every=20),
        evaluation=Evaluation(every=1, prompts=4),
    )
    plan = module.Plan(runs=tmp_path / "runs", docs=tmp_path / "docs", config=config, seeds=(1,))
    page = page_with_places(plan.docs, "tools")
    record = module.main(plan)
    assert "stale" not in page.read_text() and "| without |" in page.read_text()
    assert_pictures(plan.docs / "images", ("tools.png",))
    written = json.loads((plan.docs / "records" / "tools.json").read_text())
    assert written.keys() == record.keys() and all(math.isfinite(n) for n in numbers(written))
    for arm in ("tools", "none"):
        for run in written["arms"][arm]["runs"]:
            assert run["steps"] == [1, 2] and run["held_out_steps"] == [0, 1, 2]
            assert len(run["calling"]) == 2 and all(0 <= share <= 1 for share in run["calling"])
    assert all(sum(run["calls"]) == sum(run["calling"]) == 0 for run in written["arms"]["none"]["runs"])

    before = made_at(plan.runs)
    assert module.main(plan)["arms"] == record["arms"]
    assert made_at(plan.runs) == before and len(before) == 2 * 3


def test_who_calls_a_tool_is_read_from_the_turns(script, tmp_path):  # noqa: F811
    rows = [
        {"group": 0, "index": 0, "turns": 1},
        {"group": 0, "index": 1, "turns": 3},
        {"group": 1, "index": 0, "turns": 2},
    ]
    rows.append({**rows[1]})  # another training sequence of the same rollout
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert script("tools").calling_share(tmp_path / "rows.parquet") == pytest.approx(2 / 3)
