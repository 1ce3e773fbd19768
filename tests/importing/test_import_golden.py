"""Verdicts against what the libraries themselves computed, as recorded in tests/golden.

Every recorded case is imported from its own settings, and the recipe's loss is taken on the recorded tensors. Where the
report says "equal", value and gradient are theirs; where it gives a factor, theirs are ours x that factor.
"""

import json
from pathlib import Path

import pytest
import torch

import gspo
from gspo.advantages import AdvantageInput
from gspo.importing import import_trl, import_verl
from gspo.importing.verl_step import ACTOR, CORRECTION, ROLLOUT
from gspo.objectives import Corrected

GOLDEN = Path(__file__).parents[1] / "golden"
TRL = json.loads((GOLDEN / "trl_1_16.json").read_text())
VERL = json.loads((GOLDEN / "verl_0_9_1.json").read_text())
ROWS, LENGTH = 6, 9


def number(value):
    fill = lambda v: [fill(i) for i in v] if isinstance(v, list) else float("nan") if v is None else v  # noqa: E731
    return torch.tensor(fill(value), dtype=torch.float64)


def ours(config, x, with_sampler=False):
    """(loss, gradient) of a recipe's objective, corrections and terms on recorded tensors."""
    objective = config.objective
    if config.corrections:
        objective = Corrected(base=objective, corrections=config.corrections)
    leaf = x["logprobs"].clone().requires_grad_(True)
    out = gspo.loss(
        (objective, *config.terms),
        leaf,
        old_logprobs=x["old_logprobs"],
        reference_logprobs=x["reference_logprobs"],
        sampler_logprobs=x["sampler_logprobs"] if with_sampler else None,
        entropy=x["entropy"].clone(),
        old_entropy=x["entropy"],
        mask=x["mask"].bool(),
        advantage=x["advantage"],
    ).loss
    out.backward()
    return out.detach(), leaf.grad


def tensors(golden, key):
    return {name: number(value) for name, value in golden["inputs"][key].items()}


def compare(mine, theirs, factor, rtol):
    for name, value in zip(("loss", "gradient"), mine, strict=True):
        torch.testing.assert_close(value * factor, number(theirs[name]), rtol=rtol, atol=rtol / 100)


def line(result, key):
    (found,) = [line for line in result.lines if line.key == key]
    return found


# ---- TRL -------------------------------------------------------------------------------------------------------

ELSEWHERE = ("gmpo", "gmpo_empty_row", "rloo", "dpo")
"""Recorded from other trainers of TRL."""
LOSS_KEYS = ("loss_type", "importance_sampling_level", "beta", "delta", "entropy_coef", "top_entropy_quantile")


def trl_words(case):
    settings = {"max_completion_length": LENGTH, "per_device_train_batch_size": ROWS, "num_generations": 2}
    # A generation batch of four updates has four times as many rows; the recorded rows are one update of it.
    settings |= case["settings"]
    if "vllm" in case:
        settings["use_vllm"] = True
        settings |= {f"vllm_importance_sampling_{name}": value for name, value in case["vllm"].items()}
    return [word for name, value in settings.items() for word in (f"--{name}", "null" if value is None else str(value))]


@pytest.mark.parametrize("name", [name for name in TRL["cases"] if name not in ELSEWHERE])
def test_trl_verdicts_hold_on_recorded_numbers(name):
    case = TRL["cases"][name]
    result = import_trl(trl_words(case))
    found = line(result, "loss_type")
    if name == "vespo_token_truncate":
        assert line(result, "vllm_importance_sampling_mode").verdict == "different"
        return
    said = {result.verdicts()[key] for key in LOSS_KEYS if key in result.verdicts()}
    assert said <= {"equal", "equal up to a scale"}
    for key, theirs in case["results"].items():
        x = tensors(TRL, key)
        factor = 1.0
        if found.factor:
            # dapo_of_four: theirs divides by a quarter of the batch's tokens, which the recording gives.
            assert found.factor == "tokens of the update / (tokens of the rollout batch / 4)"
            factor = x["mask"].sum().item() / (theirs["num_items_in_batch"] / 4)
        rtol = 1e-6 if case["settings"].get("loss_type") == "sapo" else 1e-12
        compare(ours(result.config, x, "vllm" in case), theirs, factor, rtol)


def test_trls_length_weighted_loss_is_luspo_times_the_factor_it_gives():
    """Written out: the value of a sequence, once per token, over the tokens of the update."""
    words = ["--importance_sampling_level", "sequence", "--per_device_train_batch_size", str(ROWS)]
    words += ["--num_generations", "2", "--max_completion_length", str(LENGTH)]
    for loss_type in ("dapo", "bnpo", "dr_grpo"):
        result = import_trl([*words, "--loss_type", loss_type])
        x = tensors(TRL, "far")
        mask, advantage = x["mask"].bool(), x["advantage"][:, None]
        leaf = x["logprobs"].clone().requires_grad_(True)
        gap = ((leaf - x["old_logprobs"]) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        ratio = gap.exp()
        value = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        total = ROWS * LENGTH if loss_type == "dr_grpo" else mask.sum()
        theirs = (value * mask).sum() / total
        theirs.backward()
        factor = {"dr_grpo": 1 / LENGTH}.get(loss_type, ROWS / mask.sum().item())
        mine = ours(result.config, x)
        torch.testing.assert_close(mine[0] * factor, theirs.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mine[1] * factor, leaf.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("delta", [0.9, 1.1, 4.0])
def test_trls_delta_on_either_side_of_the_upper_bound(delta):
    words = [
        "--loss_type",
        "grpo",
        "--delta",
        str(delta),
        "--per_device_train_batch_size",
        "6",
        "--num_generations",
        "2",
    ]
    config = import_trl(words).config
    x = tensors(TRL, "wild")
    mask, advantage = x["mask"].bool(), x["advantage"][:, None]
    leaf = x["logprobs"].clone().requires_grad_(True)
    ratio = (leaf - x["old_logprobs"]).exp()
    value = -torch.min(ratio.clamp(max=delta) * advantage, ratio.clamp(0.8, 1.2) * advantage)
    theirs = ((value * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    theirs.backward()
    mine = ours(config, x)
    torch.testing.assert_close(mine[0], theirs.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mine[1], leaf.grad, rtol=1e-12, atol=1e-14)


# ---- verl ------------------------------------------------------------------------------------------------------

BASE = [
    "algorithm.adv_estimator=grpo", f"{ROLLOUT}n=2", "data.train_batch_size=3", f"{ACTOR}ppo_mini_batch_size=3",
    f"data.max_response_length={LENGTH}",
]  # fmt: skip


def verl(*words):
    return import_verl([*BASE, *words])


def verl_words(case):
    settings = {"policy_loss.loss_mode": case.get("loss_mode", "geo_mean")} | case.get("settings", {})
    settings["loss_agg_mode"] = case.get("loss_agg_mode", "token-mean")
    return [f"{ACTOR}{name}={value}" for name, value in settings.items()]


SPLIT = ("vanilla_seq_mean_local", "gspo_local", "geo_mean_in_two")
"""Without the global batch that verl's engines pass, or in two micro-batches."""


@pytest.mark.parametrize("name", [n for n in VERL["cases"] if n not in SPLIT and not n.startswith("kl_")])
def test_verl_verdicts_hold_on_recorded_numbers(name):
    case = VERL["cases"][name]
    result = verl(*verl_words(case))
    mode, averaging = line(result, f"{ACTOR}policy_loss.loss_mode"), line(result, f"{ACTOR}loss_agg_mode")
    for key, theirs in case["results"].items():
        x = tensors(VERL, key)
        factor = 1.0
        if averaging.factor:
            assert name == "gspo_token_mean" and "length-weighted" in averaging.why
            assert averaging.factor == "rows / tokens of the update"
            factor = ROWS / x["mask"].sum().item()
        elif mode.factor:
            assert mode.factor == "micro-batches of an update"  # one, here
        compare(ours(result.config, x), theirs, factor, 1e-12)


@pytest.mark.parametrize("name", ["kl_k1", "kl_k2", "kl_k3"])
def test_verls_kl_terms(name):
    case = VERL["cases"][name]
    words = [f"{ACTOR}use_kl_loss=True", f"{ACTOR}kl_loss_coef=1.0", f"{ACTOR}kl_loss_type={case['kl_loss_type']}"]
    result = verl(*words, f"{ACTOR}loss_agg_mode={case['loss_agg_mode']}")
    assert line(result, f"{ACTOR}use_kl_loss").verdict == "equal"
    for key, theirs in case["results"].items():
        x = tensors(VERL, key)
        whole, alone = ours(result.config, x), ours(verl().config, x)
        compare((whole[0] - alone[0], whole[1] - alone[1]), theirs, 1.0, 1e-11)


def test_verls_dro_is_what_is_written():
    config = verl(f"{ACTOR}policy_loss.loss_mode=dro", f"{ACTOR}policy_loss.dro_beta=0.5").config
    x = tensors(VERL, "far")
    mask = x["mask"].bool()
    leaf = x["logprobs"].clone().requires_grad_(True)
    value = -(leaf * x["advantage"][:, None] - 0.25 * (leaf - x["old_logprobs"]).square())
    theirs = (value * mask).sum() / mask.sum()
    theirs.backward()
    mine = ours(config, x)
    torch.testing.assert_close(mine[0], theirs.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mine[1], leaf.grad, rtol=1e-12, atol=1e-14)


def scored(golden, key):
    given = golden["scored"][key]
    return number(given["rewards"]), torch.tensor(given["group"]), torch.tensor(given["length"])


def advantage(config, rewards, group, length):
    weights = torch.ones(rewards.shape[1], dtype=torch.float64)
    total = (rewards * weights).nansum(dim=1)
    units = torch.arange(LENGTH) < length[:, None]
    batch = AdvantageInput(rewards=rewards, total=total, group=group, length=length, mask=units, reward_weights=weights)
    return config.advantage(batch, config.advantage.init())[0]


@pytest.mark.parametrize("name", ["group_std", "group_mean", "batch_std", "gdpo", "gdpo_weighted"])
def test_trls_advantages(name):
    case = TRL["advantages"][name]
    words = []
    for key, value in case["settings"].items():
        words += [f"--{key}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    result = import_trl([*words, "--seed", "1"])
    assert {result.verdicts()[key] for key in case["settings"]} == {"equal"}
    mine = advantage(result.config, *scored(TRL, "complete"))
    torch.testing.assert_close(mine, number(case["results"]["complete"]), rtol=1e-6, atol=1e-8)


ESTIMATORS = [name for name in VERL["advantages"] if "passk" not in name and not name.endswith("single")]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_verls_advantages(name):
    case = VERL["advantages"][name]
    words = [f"algorithm.adv_estimator={case['estimator']}"]
    words += [f"algorithm.{key}={value}".replace(" ", "") for key, value in case["arguments"].items()]
    result = verl(*words)
    assert line(result, "algorithm.adv_estimator").verdict == "equal"
    rewards, group, length = scored(VERL, "complete")
    mine = advantage(result.config, rewards, group, length)
    theirs = number(case["advantage"])
    if mine.ndim == 1:
        mine = mine[:, None] * (torch.arange(theirs.shape[1]) < length[:, None])
    torch.testing.assert_close(mine, theirs, rtol=5e-6, atol=5e-8)


@pytest.mark.parametrize("name", ["token_tis", "sequence_tis", "icepop", "icepop_narrow", "sequence_icepop"])
def test_verls_rollout_weights(name):
    case = VERL["weights"][name]
    words = [f"{CORRECTION}{key}={value}" for key, value in case["settings"].items()]
    config = verl(*words, f"{ACTOR}clip_ratio_c=1e9", f"{ACTOR}clip_ratio_high=0.28").config
    for key, theirs in case["results"].items():
        compare(ours(config, tensors(VERL, key), with_sampler=True), theirs, 1.0, 1e-12)
