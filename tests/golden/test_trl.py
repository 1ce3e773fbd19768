"""Ours against what TRL 1.16 itself computes on the same tensors: value and gradient (made by make_trl.py).

Where the two differ on purpose is in docs/parity.md, by how much in the tests below.
"""

import pytest
import torch
from parity_cases import (
    ADAPTIVE,
    DAPO,
    RECORDED,
    TRL_ADVANTAGES,
    TRL_LOSSES,
    TRL_STATE,
    TRL_VALUES,
    assert_equal,
    close,
    corrected,
    inputs,
    number,
    ours,
    scored,
    theirs,
)

import gspo
from gspo.advantages.a_star import optimal_value
from gspo.corrections import TokenTIS

GOLDEN = RECORDED["trl"]
WITH_SAMPLER = {name for name, case in GOLDEN["cases"].items() if "vllm" in case}


def recorded(name, key):
    return theirs(GOLDEN["cases"][name]["results"][key])


def each_input(cases):
    """Every case on every input it was recorded on. "rloo": REINFORCE has no ratio, so on-policy only."""
    return [
        pytest.param(case, key, id=f"{case} {key}")
        for case in cases
        for key in GOLDEN["cases"][case.recorded.removeprefix("trl/")]["results"]
        if case.part != "gradient" or key == "on_policy"
    ]


@pytest.mark.parametrize(("case", "key"), each_input(TRL_LOSSES))
def test_losses_equal_trl(case, key):
    name = case.recorded.removeprefix("trl/")
    x = inputs("trl", "far" if key == "on_policy" else key)
    group = x[case.group].long() if case.group else None
    got = ours(case.ours, x, group=group, rewards=x.get("rewards"), with_sampler=name in WITH_SAMPLER)
    assert_equal(got, recorded(name, key), case)


@pytest.mark.parametrize("case", TRL_ADVANTAGES, ids=str)
@pytest.mark.parametrize("key", GOLDEN["scored"])
def test_advantages_equal_trl(case, key):
    """A sum of rewards leaves out the missing ones; a row without any is unscored."""
    rewards, group, length = scored("trl", key)
    if not isinstance(case.ours, gspo.GDPO):
        total = rewards.nansum(dim=1)
        rewards = torch.where(rewards.isnan().all(dim=1), torch.full_like(total, torch.nan), total)
    got = gspo.advantages(case.ours, rewards, group, length=length)
    close(got, number(GOLDEN["advantages"][case.recorded.removeprefix("trl/")]["results"][key]), case.rtol)


@pytest.mark.parametrize("case", TRL_STATE, ids=str)
def test_states_equal_trl(case):
    """Skywork-OR1's controller over seven updates, one of them in two micro-batches."""
    given, x, state = GOLDEN["adaptive_entropy"], inputs("trl", "far"), case.ours.init()
    mask = x["mask"].bool()
    for update in given["updates"]:
        term, parts = case.ours.at(state), len(update["factors"])
        for recorded_gradient in update["entropy_gradient"]:
            gradient = ours((DAPO, term), x)[2] / parts  # the micro-batches have as many tokens each
            close(gradient, number(recorded_gradient))
        entropy = [factor * x["entropy"][mask] for factor in update["factors"]]
        totals = {"entropy": sum(e.sum().item() for e in entropy), "units": sum(e.numel() for e in entropy)}
        state = case.ours.update(state, totals)
        assert state == pytest.approx([update["after"]["coefficient"], update["after"]["entropy"]], rel=1e-12)
    assert ADAPTIVE.coef_max in {update["after"]["coefficient"] for update in given["updates"]}


@pytest.mark.parametrize("case", TRL_VALUES, ids=str)
def test_optimal_values_equal_trl(case):
    """V* of each prompt, from which `AStar` is the reward's distance."""
    given = GOLDEN["a2po_values"]
    rewards, values = number(given["rewards"]), number(given["values"])
    ours = [optimal_value(row, beta=given["settings"]["beta1"]) for row in rewards]
    close(torch.tensor(ours, dtype=torch.float64), values, case.rtol)
    group = torch.arange(len(rewards))
    close(gspo.advantages(case.ours, rewards[:, 0], group, values=values), rewards[:, 0] - values)


def test_a_reward_that_failed_unscores_its_row():
    """TRL sums the rewards that it has; a NaN among ours takes the row out, since the sum would not be comparable."""
    rewards, group, _ = scored("trl", "missing")
    failed = rewards.isnan().any(dim=1)
    got = gspo.advantages(gspo.GroupStd(), rewards, group)
    expected = number(GOLDEN["advantages"]["group_std"]["results"]["missing"])
    untouched = torch.stack([~failed[group == g].any() for g in group])
    close(got[untouched], expected[untouched])
    assert not got[failed].any() and expected[failed].any()


@pytest.mark.parametrize(
    ("name", "objective"), [("dapo", gspo.DAPO()), ("cispo", gspo.CISPO()), ("vespo", gspo.VESPO())]
)
def test_token_means_in_one_of_four_updates(name, objective):
    """TRL gives each of four updates a quarter of the generation batch's 100 tokens; ours counts the step's own."""
    case = GOLDEN["cases"][f"{name}_of_four"]
    for key, result in case["results"].items():
        assert result["num_items_in_batch"] / case["settings"]["steps_per_generation"] == 25
        x = inputs("trl", key)
        for got, expected in zip(ours(objective, x), theirs(result), strict=True):
            close(got * x["mask"].sum(), expected * 25)


def test_gmpo_counts_an_empty_rows_advantage():
    """TRL gives a row without a token the ratio 1, so its advantage enters the value; ours is 0. Gradients agree."""
    for key in GOLDEN["cases"]["gmpo_empty_row"]["results"]:
        x, expected = inputs("trl", key), recorded("gmpo_empty_row", key)
        empty = ~x["mask"].bool().any(dim=1)
        got = ours(gspo.GMPO(), x)
        close(got[0] - x["advantage"][empty].sum() / len(empty), expected[0])
        close(got[1], expected[1])


def test_sapo_has_a_float32_temperature():
    """TRL's 1.05 is float32's: the same as ours with that number, exactly."""
    tau = torch.tensor(1.05, dtype=torch.float32).item()
    for key in GOLDEN["cases"]["sapo_default"]["results"]:
        for got, expected in zip(
            ours(gspo.SAPO(tau_neg=tau), inputs("trl", key)), recorded("sapo_default", key), strict=True
        ):
            close(got, expected)


def test_vespo_takes_the_samplers_weight_inside_its_own():
    """TRL's W is the product of ratio and correction; ours multiplies phi(W) by the correction."""
    x, expected = inputs("trl", "wild"), recorded("vespo_token_truncate", "wild")
    weight = number(GOLDEN["cases"]["vespo_token_truncate"]["weight"])
    inside = {**x, "old_logprobs": x["old_logprobs"] - weight.log()}
    for got, other in zip(ours(gspo.VESPO(), inside), expected, strict=True):
        close(got, other)
    outside = ours(corrected(gspo.VESPO(), TokenTIS()), x, with_sampler=True)
    assert not torch.allclose(outside[0], expected[0], rtol=0.1)


def test_weights_equal_trl():
    """The recorded importance weights themselves, where ours have a name for them."""
    for case in TRL_LOSSES:
        name = case.recorded.removeprefix("trl/")
        if name not in WITH_SAMPLER or name == "opsm_sampler":
            continue
        x = inputs("trl", "wild")
        mask = x["mask"].bool()
        base, (correction,) = case.ours.base, case.ours.corrections
        given = {"sampler_logprobs": x["sampler_logprobs"], "old_logprobs": x["old_logprobs"]}
        with_it, without = gspo.weights(case.ours, mask, **given), gspo.weights(base, mask)
        weight = number(GOLDEN["cases"][name]["weight"]).expand_as(mask)
        close((with_it / without)[mask], weight[mask])
        assert 0 < (weight[mask] == 0).double().mean() < 1 or (weight[mask] == correction.cap).any(), name


def test_the_inputs_reach_every_branch():
    """Clipped and free on both sides, at the paper's bounds and at 0.2, so that agreement means something."""
    cases = (("gspo", ("near",), True), ("luspo", ("near", "far"), True), ("grpo", ("far",), False),
             ("grpo", ("holes",), False), ("grpo_wild", ("wild",), False))  # fmt: skip
    for name, keys, per_row in cases:
        seen = set()
        for key in keys:
            x = inputs("trl", key)
            mask, free = x["mask"].bool(), recorded(name, key)[1] != 0
            sign = x["advantage"].sign()[:, None].expand_as(mask)
            if per_row:
                mask, free, sign = mask.any(dim=1), free.any(dim=1), sign[:, 0]
            seen |= set(zip(sign[mask].tolist(), free[mask].tolist(), strict=True))
        assert seen >= {(-1, False), (-1, True), (1, False), (1, True)}, name


def test_the_wild_input_reaches_every_cap():
    x = inputs("trl", "wild")
    mask = x["mask"].bool()
    ratio = (x["logprobs"] - x["old_logprobs"]).exp()[mask]
    negative = x["advantage"][:, None].expand_as(mask)[mask] < 0
    assert (ratio > 5).any() and (ratio[negative] > 4).any() and (ratio[~negative] > 4).any()
    assert not torch.equal(recorded("grpo_delta", "wild")[1], recorded("grpo_wild", "wild")[1])
    for name, base, row in (("opsm", "sapo", 3), ("top_entropy_grpo", "grpo_wild", 5)):
        masked, free = recorded(name, "wild")[1], recorded(base, "wild")[1]
        assert ((masked == 0) & (free != 0))[row].any() and (masked != 0).any(), name


def test_zero_and_empty_rows_have_no_gradient():
    for name in ("gspo", "gspo_wide", "grpo", "grpo_clip_higher", "sapo", "luspo"):
        for key in GOLDEN["cases"][name]["results"]:
            gradient = recorded(name, key)[1]
            assert not gradient[2].any() and not gradient[4].any()
