"""Runs of a mixture of experts: metrics, ledger, report and commands; the record of routing replay, in small."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from runs import metrics, settings
from test_benchmarks_run import SMALL, assert_pictures, made_at, numbers, page_with_places, script  # noqa: F401

from gspo.cli.main import run as command
from gspo.models import TinyConfig, tiny_model
from gspo.settings import recipe_folder
from gspo.training.run import start

EXPERTS = ("tiny.experts", 4)
POLICIES = {
    "free": {},
    "R2": {"routing": "R2"},
    "R3": {"routing": "R3"},
    "half": {"sampler_dtype": "bfloat16", "balance_coef": 0.01},
}


def policy(**fields):
    return "policy", {"name": "causal_lm", **fields}


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_run_says_of_its_experts(tmp_path, monkeypatch, capsys, name):
    """Metrics by update and layer, a column of the ledger, plots; `what-if` and `why-clipped` read such a run."""
    run = start(settings(tmp_path / "run", EXPERTS, policy(**POLICIES[name]), ("optimizer.lr", 0.01)))
    assert run.state.old_logprobs == ("sampler" if name in ("free", "R3") else "policy")
    lines = [line for line in metrics(run.folder) if "loss" in line]
    seen = [line for line in lines if "experts/changed" in line]
    assert seen
    for line in seen:
        shares = [value for key, value in line.items() if key.startswith("experts/changed")]
        assert all(0 <= share <= 1 for share in shares)
        layers = [line[f"experts/changed/layer_{i}"] for i in range(2)]
        assert line["experts/changed"] == pytest.approx(np.mean(layers))
        assert line.get("experts/changed/update_0", 0.0) == 0.0  # sampler or old pass, it was the same policy
        assert 1 - 1e-9 <= line["experts/balance"] <= 4
    assert any(line["experts/changed"] > 0 for line in seen)
    rows = [row for file in sorted((run.folder / "ledger").iterdir()) for row in pq.read_table(file).to_pylist()]
    trained = [row for row in rows if not row["skipped"]]
    assert all(0 <= row["changed_experts"] <= 1 for row in trained)
    assert any(row["changed_experts"] > 0 for row in trained)
    page = (run.folder / "report.html").read_text()
    assert all(title in page for title in ("Changed experts, by update", "Changed experts, by layer"))

    monkeypatch.setenv("CI", "1")
    step = str(next(row["step"] for row in trained if row["changed_experts"] > 0))
    for words in (
        ["what-if", str(run.folder), "--step", step, "--objective", "grpo"],
        ["why-clipped", str(run.folder), "--step", step],
    ):
        assert command(words) == 0, capsys.readouterr()


def test_replay_holds_the_first_update_to_the_old_ratio_and_frees_none_of_the_weights(tmp_path):
    """The runs part behind the first mini-batch, where routes begin to differ, and not before."""
    finals = {}
    for name in ("free", "R2"):
        run = start(
            settings(
                tmp_path / name, EXPERTS, policy(**POLICIES[name]), ("optimizer.lr", 0.01), ("old_logprobs", "policy")
            )
        )
        finals[name] = metrics(run.folder)
    first = [lines[1] for lines in finals.values()]
    assert first[0]["reward"] == first[1]["reward"]
    assert finals["free"][-1] != finals["R2"][-1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((policy(routing="R2"),), "mixture of experts: qwen3 has no experts"),
        ((policy(routing="R3"),), "mixture of experts: qwen3 has no experts"),
        ((policy(balance_coef=0.1),), "mixture of experts: qwen3 has no experts"),
        ((policy(balance_coef=-1.0),), "must not be negative"),
        ((EXPERTS, policy(routing="R2"), ("old_logprobs", "sampler")), "makes none"),
        ((EXPERTS, policy(routing="R2"), ("objective", "reinforce"), ("updates_per_step", 1)), "divides by none"),
        (
            (EXPERTS, policy(routing="R3"), ("data.path", "PAIRS"), ("rewards", []), ("objective", "dpo")),
            "have no record",
        ),
        ((("tiny.experts", 2), ("tiny.experts_per_token", 3)), "must lie between 1 and experts = 2"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, overrides, said):
    from test_resume import PAIRS

    overrides = tuple((key, PAIRS if value == "PAIRS" else value) for key, value in overrides)
    with pytest.raises(ValueError, match=said) as error:
        start(settings(tmp_path / "run", *overrides))
    assert "\n" not in str(error.value)


def test_the_tiny_model_of_experts():
    shape = TinyConfig(hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=64, experts=4)
    loaded = tiny_model(shape, seed=0)
    assert "4 experts" in loaded.source
    block = loaded.model.model.layers[0].mlp
    assert (block.gate.num_experts, block.gate.top_k, block.experts.down_proj.shape[-1]) == (4, 2, 32)
    again = tiny_model(shape, seed=0).model
    pairs = zip(loaded.model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_record_of_replay(script, tmp_path):  # noqa: F811
    module = script("moe")
    shape = TinyConfig(hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=32, experts=4)
    tiny = replace(module.TINY, **{**SMALL, "tiny": shape})
    plan = module.Plan(runs=tmp_path / "runs", docs=tmp_path / "docs", tiny=tiny, seeds=(1, 2), batches=2)
    page = page_with_places(plan.docs, "moe")
    record = module.main(plan)
    assert_pictures(plan.docs / "images", ("moe.png",))
    written = json.loads((plan.docs / "records" / "moe.json").read_text())
    assert all(math.isfinite(n) for n in numbers(written)) and len(numbers(written)) > 100
    runs = sum(len(arm.rates) for arm in module.ARMS.values())
    assert page.read_text().count("\n| ") == 2 + 1 + runs + 2 + 4 and "stale" not in page.read_text()
    assert len(written["arms"]) == len(written["runs"]) == runs
    for key, found in written["runs"].items():
        for run in found:
            assert len(run["held_out"]) == 3 and 0 <= run["changed"] <= 1, key
            if "bf16" not in key:
                assert run["changed_in_first_update"] == 0, key
    for found in written["routing"].values():
        assert found["sequence_routing"]["mean"] <= found["token_routing"]["mean"]
    before = made_at(plan.runs)
    assert module.main(plan)["arms"].keys() == record["arms"].keys()
    assert made_at(plan.runs) == before and len(before) > 8


def test_arms_differ_in_objective_and_routing_alone(script, tmp_path, monkeypatch):  # noqa: F811
    module = script("moe")
    monkeypatch.setattr(module, "start_of", lambda plan, seed: ("tiny", {}))
    plan = module.Plan(runs=tmp_path)
    full = [name for name in module.ARMS if "bf16" not in name]
    blank = {"objective": None, "policy": None, "name": "", "folder": ""}
    configs = [replace(module.config_of(plan, name, 3e-4, 1), **{**blank, "objective": module.ARMS["grpo"].objective,
               "policy": plan.tiny.policy}) for name in full]  # fmt: skip
    assert all(config == configs[0] for config in configs)
    assert module.BASES.keys() == module.ARMS.keys() - {"grpo"}


def test_a_mixture_can_be_planned(capsys, monkeypatch):
    """Products of grouped experts have no shapes in float32: they are counted in bfloat16."""
    monkeypatch.setenv("COLUMNS", "200")
    assert command(["plan", str(recipe_folder() / "moe-gspo.toml")]) == 0
    said = capsys.readouterr().out
    assert "0.7 M parameters" in said and "shared_prefix, masked" in said
