"""`gspo what-if`, `gspo why-clipped` and `gspo values`, on real runs of a second."""

import json
import typing
from dataclasses import asdict, replace

import pyarrow.parquet as pq
import pytest
import torch

import gspo as package
from gspo.advantages import optimal_value
from gspo.cli.check import noise_rows
from gspo.cli.saved_step import read_saved_step
from gspo.cli.what_if import objective_of, what_if, what_if_table
from gspo.objectives import Objective
from gspo.training.update import Mismatch

EVERY = [c.name for c in typing.get_args(typing.get_args(Objective)[0]) if c.name != "gspo"]
REFERENCE = ("terms", [{"name": "reference_kl", "coef": 1e-3}])
STEPS = ("steps", 3)


def test_what_if_scores_every_objective(gspo, recipe):
    assert gspo("train", recipe(REFERENCE, STEPS, ("optimizer.lr", 0.01)), "--folder", "run").code == 0
    said = gspo("what-if", "run", "--step", 3, "--objective", *EVERY, '{name = "gspo", clip_low = 9.0}', "--json")
    facts = json.loads(said.out)["objectives"]
    assert [v["name"] for v in facts] == ["gspo", *EVERY, "gspo-2"]
    for verdict in facts:
        assert sum(verdict["share"]) == pytest.approx(1.0) and 1 <= verdict["effective_sequences"] <= 16
        assert verdict["cosine"][verdict["name"]] == pytest.approx(1.0)
        assert all(-1.000001 <= cosine <= 1.000001 for cosine in verdict["cosine"].values())
    by_name = {v["name"]: v for v in facts}
    assert by_name["gspo"]["loss"] == pytest.approx(by_name["gspo_token"]["loss"])
    assert by_name["gspo"]["cosine"]["gspo_token"] == pytest.approx(1.0)
    assert by_name["gspo-2"]["settings"]["clip_low"] == 9.0
    assert by_name["gspo"]["clipped_sequences"] > by_name["grpo"]["clipped_sequences"]
    table = gspo("what-if", "run", "--step", 3, "--objective", "grpo").out
    assert "effective" in table and "cosine" in table  # a narrow terminal breaks the heads


def test_what_if_is_gspo_loss_on_the_saved_numbers(gspo, recipe, tmp_path):
    """Not a second implementation: the same loss as a caller of gspo.loss gets."""
    gspo("train", recipe(STEPS, ("optimizer.lr", 0.01)), "--folder", "run")
    saved = read_saved_step(tmp_path / "run", 3)
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "step_000003.parquet").to_pylist()
    assert [row["reward"] for row in rows] == saved.step.rewards.tolist()
    for verdict, objective in zip(
        what_if(saved, [package.GRPO(), package.SAPO()]), (package.GRPO(), package.SAPO()), strict=True
    ):
        out = package.loss(
            objective,
            saved.scores.logprobs,
            old_logprobs=saved.step.old_logprobs,
            mask=saved.step.mask,
            advantage=saved.step.advantage,
        )
        assert verdict.loss == pytest.approx(out.diagnostics["loss"], rel=1e-12)


def test_a_run_with_an_objective_of_its_own(gspo, recipe, tmp_path):
    """Settings do not hold it: what-if compares the named ones, why-clipped reads the ledger and says so."""
    gspo("train", recipe(("optimizer.lr", 0.01)), "--folder", "run")
    (tmp_path / "run" / "given.json").write_text('["objective"]')
    assert "given from Python" in gspo("what-if", "run", "--step", 2).line
    facts = json.loads(gspo("what-if", "run", "--step", 2, "--objective", "grpo", "sapo", "--json").out)
    assert [v["name"] for v in facts["objectives"]] == ["grpo", "sapo"]
    said = gspo("why-clipped", "run", "--step", 2).out
    assert "an objective given from Python" in said and "update 1: 8 sequences" in said


def test_a_step_that_was_not_saved_is_answered_with_the_nearest(gspo, tmp_path):
    folder = tmp_path / "run" / "rollouts"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    for step in range(1, 200, 5):
        (folder / f"step_{step:06d}.parquet").touch()
    said = gspo("what-if", "run", "--step", 100).line
    assert said == "step 100 of run was not saved; there are: 40 from 1 to 196, the nearest is 101"


def test_no_gradient_has_no_cosine(gspo, recipe, tmp_path):
    """Nothing pulls where every advantage is 0: null in JSON (which has no NaN), a dash in the table."""
    gspo("train", recipe(), "--folder", "run")
    saved = read_saved_step(tmp_path / "run", 2)
    still = replace(saved, step=replace(saved.step, advantage=torch.zeros_like(saved.step.advantage)))
    verdicts = what_if(still, [package.GSPO(), package.GRPO()])
    assert [v.cosine for v in verdicts] == [{"gspo": None, "grpo": None}] * 2
    json.dumps([asdict(v) for v in verdicts], allow_nan=False)
    assert list(what_if_table(still, verdicts).columns[-1].cells) == ["-", "-"]


def test_what_if_refuses_what_the_run_did_not_keep(gspo, recipe, tmp_path):
    gspo("train", recipe(), "--folder", "run")
    assert (
        "agro reads log-probs of the reference, and this run had none"
        in gspo("what-if", "run", "--step", 2, "--objective", "agro").line
    )
    assert "there are: 1, 2" in gspo("what-if", "run", "--step", 7).line
    assert "did you mean 'grpo'" in gspo("what-if", "run", "--step", 2, "--objective", "grpoo").line
    assert "not a run folder" in gspo("what-if", "nowhere", "--step", 2).line
    saved = read_saved_step(tmp_path / "run", 2)
    with pytest.raises(ValueError, match="reads entropies"):
        what_if(replace(saved, has_entropy=False), [objective_of("egsw", saved.config)])


@pytest.mark.parametrize("objective", ["gspo", "grpo"])
def test_why_clipped_says_what_the_ledger_has(gspo, recipe, tmp_path, objective):
    """A learning rate that throws the ratio far outside: the second update is clipped, the first is not."""
    lr = {"gspo": 1e-3, "grpo": 0.1}[objective]
    gspo("train", recipe(STEPS, ("optimizer.lr", lr), ("objective", objective)), "--folder", "run")
    ledger = pq.read_table(tmp_path / "run" / "ledger" / "step_000003.parquet").to_pylist()
    said = gspo("why-clipped", "run", "--step", 3).out
    assert f"objective {objective} with clip_low = " in said and "update 0: 8 sequences" in said
    second = [row for row in ledger if row["update"] == 1]
    if objective == "gspo":
        clipped = sum(row["bound"] != "none" for row in second)
        assert clipped and f"{clipped} of {sum(not r['skipped'] for r in second)} sequences clipped" in said
        assert "no more push" in said
    else:
        clipped = sum(row["clipped_low"] + row["clipped_high"] for row in second)
        assert clipped and f"{clipped} of {sum(r['length'] for r in second if not r['skipped'])} tokens clipped" in said
        assert "tokens: " in said
    assert "there are: 1, 2, 3" in gspo("why-clipped", "run", "--step", 9).line


def test_values_are_the_optimal_values_and_train_a_star(gspo, recipe, tmp_path):
    gspo("train", recipe(), "--folder", "run")
    said = gspo(
        *("values", "run/model", "--task", "addition", "--prompts", 5, "--samples", 4, "--max-tokens", 3),
        *("--out", "rows.jsonl", "--rewards", '[{name = "length", options = {target_tokens = 2}}]'),
    )
    assert said.code == 0 and "5 prompts x 4 completions" in said.out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(-2 <= row["value"] <= 0 and row["answer"] for row in rows)
    assert "exists" in gspo("values", "run/model", "--task", "addition", "--out", "rows.jsonl").line
    data = ("data", {"path": str(tmp_path / "rows.jsonl"), "held_out_prompts": 1})
    assert gspo("train", recipe(data, ("advantage", "a_star")), "--folder", "second").code == 0
    assert "needs a column 'value'" in gspo("train", recipe(("advantage", "a_star")), "--folder", "third").line


def test_optimal_value_lies_between_mean_and_best():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0])
    values = [optimal_value(rewards, beta) for beta in (100.0, 1.0, 0.1, 0.01)]
    assert values == sorted(values) and 0.5 < values[0] < 0.51 and 0.98 < values[-1] < 1.0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((("advantage", "opo"),), "advantage opo is right for one update per rollout batch and this run makes 2"),
        ((("objective", "reinforce"),), "objective reinforce is right for one update"),
        ((("objective", "dpo"), ("group_size", 1)), "group_size must be at least 2"),
        ((("advantage", {"name": "pass_at_k", "k": 4}),), "needs a group_size of at least 5, it is 4"),
        ((("advantage", {"name": "reinforce_pp", "gamma": 0.5}),), "use gspo_token, or a token objective"),
        (
            (("advantage", {"name": "gdpo", "weights": [1.0, 2.0]}),),
            "advantage gdpo has 2 weights and the run 1 reward functions",
        ),
    ],
)
def test_unmet_requirements_are_named_before_the_first_step(gspo, recipe, tmp_path, pairs, message):
    for verb in ("train", "check"):
        said = gspo(verb, recipe(*pairs), "--folder", "run")
        assert message in said.line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    planned = " ".join(gspo("plan", recipe(*pairs)).out.split())
    assert "this run would be refused" in planned and message in planned


def test_check_says_where_rounding_decides_what_is_clipped():
    """SmolLM2's bf16 noise (0.01) is far wider than GSPO's bounds and inside GRPO's; float32's is inside both."""
    said = lambda noise, band: noise_rows(Mismatch(mean=0.0, max=0.0, ratio_std=noise, band=band))  # noqa: E731
    (first, second) = said(0.01, 3e-4)
    assert "takes the policy's" in first[2] and second[1] == "33x" and "rounding is wider than the bounds" in second[2]
    for noise, band, whose in ((0.01, 0.2, "sampler"), (1e-7, 3e-4, "sampler"), (2e-4, 3e-4, "policy")):
        (only,) = said(noise, band)
        assert f"takes the {whose}'s" in only[2]


def test_check_tries_every_objective_and_estimator(gspo, recipe):
    """Each with its needs: a reference, rewards, entropies, whole groups, advantages per token."""
    reinforce = ("advantage", {"name": "reinforce_pp", "gamma": 0.9, "kl_coef": 0.1})
    for pairs in (
        *((("objective", name),) for name in ("agro", "trpa", "rebel", "egsw", "dhpo", "vespo", "dual_clip")),
        (("objective", "grpo"), reinforce),
        (("advantage", "gdpo"),),
        (("corrections", [{"name": "top_entropy"}, {"name": "icepop"}, {"name": "opsm"}]),),
    ):
        said = gspo("check", recipe(*pairs))
        assert said.code == 0 and "noise of the log-ratio" in said.out, (pairs, said.err)


@pytest.mark.parametrize(
    "pairs",
    [(("advantage.name", "opo"), ("advantage.off_policy", True)), (("advantage", "opo"), ("updates_per_step", 1))],
)
def test_requirements_are_lifted_as_the_message_says(gspo, recipe, pairs):
    assert gspo("train", recipe(*pairs), "--folder", "run").code == 0
