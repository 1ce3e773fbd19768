"""Ours against what verl 0.9.1 itself computes on the same tensors: value and gradient (made by make_verl.py).

Where the two differ on purpose is in docs/parity.md, by how much in the tests below.
"""

import pytest
import torch
from parity_cases import (
    LENGTH,
    RECORDED,
    VERL_ADVANTAGES,
    VERL_LOSSES,
    VERL_REJECTIONS,
    VERL_WEIGHTS,
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
from gspo.corrections import GeometricBand, TokenTIS

GOLDEN = RECORDED["verl"]


def recorded(name, key, kind="cases"):
    return theirs(GOLDEN[kind][name]["results"][key])


def name_of(case):
    return case.recorded.removeprefix("verl/")


def weight_of(correction, x):
    """[B,T] of a correction: what it does to weights that are else 1 / tokens."""
    mask = x["mask"].bool()
    given = {"sampler_logprobs": x["sampler_logprobs"], "old_logprobs": x["old_logprobs"]}
    return gspo.weights(corrected(gspo.DAPO(), correction), mask, **given) * mask.sum()


@pytest.mark.parametrize(
    ("case", "key"),
    [pytest.param(c, key, id=f"{c} {key}") for c in VERL_LOSSES for key in GOLDEN["cases"][name_of(c)]["results"]],
)
def test_losses_equal_verl(case, key):
    assert_equal(ours(case.ours, inputs("verl", key)), recorded(name_of(case), key), case)


@pytest.mark.parametrize("case", VERL_WEIGHTS, ids=str)
def test_rollout_correction_weights_equal_verl(case):
    """The weights, and a loss under them."""
    x = inputs("verl", "wild")
    given = GOLDEN["weights"][name_of(case)]
    close(weight_of(case.ours, x), number(given["weight"]), case.rtol)
    got = ours(corrected(gspo.DAPO(), case.ours), x, with_sampler=True)
    assert_equal(got, theirs(given["results"]["wild"]), case)


@pytest.mark.parametrize("case", VERL_REJECTIONS, ids=str)
def test_rejections_keep_the_same_rows_as_verl(case):
    x = inputs("verl", "wild")
    assert torch.equal(weight_of(case.ours, x) != 0, number(GOLDEN["rejections"][name_of(case)]["kept"]) != 0)


@pytest.mark.parametrize("case", VERL_ADVANTAGES, ids=str)
def test_advantages_equal_verl(case):
    """verl's are per token, 0 in the padding."""
    rewards, group, length = scored("verl", "complete")
    mask = torch.arange(LENGTH)[None] < length[:, None]
    got = gspo.advantages(case.ours, rewards, group, length=length, mask=mask)
    got = got if got.ndim == 2 else got[:, None] * mask
    close(got, number(GOLDEN["advantages"][name_of(case)]["advantage"]), case.rtol)


@pytest.mark.parametrize("name", ["grpo_single", "rloo_single", "opo_single"])
def test_a_group_of_one(name):
    """verl has no baseline for it, so that its advantage is the reward; ours is 0, as nothing is compared."""
    rewards, group, length = scored("verl", "single")
    estimator = {"grpo": gspo.GroupStd(eps=1e-6), "rloo": gspo.RLOO(), "opo": gspo.OPO()}[name.split("_")[0]]
    got = gspo.advantages(estimator, rewards, group, length=length)
    expected = number(GOLDEN["advantages"][name]["advantage"])[:, 0]
    close(got[:2], expected[:2])
    assert not got[2:].any()
    close(rewards[2:, 0], expected[2:], 2e-6)  # over 1 + 1e-6 in grpo


def test_passk_is_another_estimator():
    """verl's gives the best of a group its lead over the second, and the others nothing."""
    rewards, group, _ = scored("verl", "complete")
    advantage = number(GOLDEN["advantages"]["grpo_passk"]["advantage"])[:, 0]
    for g in group.unique():
        first, second = rewards.sum(dim=1)[group == g].topk(2).values
        assert advantage[group == g].sum() == first - second and (advantage[group == g] != 0).sum() <= 1
    assert (gspo.advantages(gspo.PassAtK(k=2), rewards, group) < 0).any()


@pytest.mark.parametrize(
    ("name", "objective"),
    [("vanilla_seq_mean_local", gspo.DualClip()), ("gspo_local", gspo.GSPO(clip_low=0.2, clip_high=0.2))],
)
def test_rows_without_a_token_do_not_count_without_a_global_batch(name, objective):
    """5 rows of 6 have a token: verl's mean is over 5 where it was given no global batch size."""
    for key in GOLDEN["cases"][name]["results"]:
        for got, expected in zip(ours(objective, inputs("verl", key)), recorded(name, key), strict=True):
            close(got * 6 / 5, expected)


def test_gspo_under_a_token_mean_weighs_by_length():
    """verl's default loss_agg_mode gives a row of n tokens n B / N times the weight of the paper's mean over rows."""
    for key in GOLDEN["cases"]["gspo_token_mean"]["results"]:
        x = inputs("verl", key)
        rows, units = len(x["mask"]), x["mask"].sum(dim=1, keepdim=True)
        got = ours(gspo.GSPO(clip_low=0.2, clip_high=0.2), x)[1] * units * rows / units.sum()
        close(got, recorded("gspo_token_mean", key)[1])


def test_geo_mean_is_a_mean_over_the_micro_batch():
    """Two micro-batches of three rows add up to twice the step's mean over six."""
    for key in GOLDEN["cases"]["geo_mean_in_two"]["results"]:
        for got, expected in zip(ours(gspo.GMPO(), inputs("verl", key)), recorded("geo_mean_in_two", key), strict=True):
            close(2 * got, expected)


def test_a_rejection_shrinks_verls_denominators():
    """verl takes rejected tokens out of the mask: a token mean is then over the kept ones, ours over all."""
    x = inputs("verl", "wild")
    kept = number(GOLDEN["rejections"]["seq_mean_k1"]["kept"])
    band = GeometricBand(low=0.8, high=1.25)
    weighted = ours(corrected(gspo.DAPO(), band), x, with_sampler=True)
    removed = ours(gspo.DAPO(), {**x, "mask": kept})
    for got, other in zip(weighted, removed, strict=True):
        close(got * x["mask"].sum() / kept.sum(), other)
    assert 0 < kept.sum() < x["mask"].sum()


def test_rejection_bounds_are_on_the_inverse_ratio():
    """verl's k1 is -log of the ratio: its "lo_hi" is our band 1/hi to 1/lo, which a lopsided band shows."""
    x = inputs("verl", "wild")
    kept = number(GOLDEN["rejections"]["seq_mean_k1_lopsided"]["kept"]) != 0
    assert torch.equal(weight_of(GeometricBand(low=1 / 1.25, high=1 / 0.7), x) != 0, kept)
    assert not torch.equal(weight_of(GeometricBand(low=0.7, high=1.25), x) != 0, kept)


def test_batch_normalised_weights_have_mean_one():
    """rollout_is_batch_normalize divides by the mean weight of the batch; ours are not normalised."""
    x = inputs("verl", "wild")
    weight = weight_of(TokenTIS(), x)
    mean = weight.sum() / x["mask"].sum()
    close(weight / mean, number(GOLDEN["weights"]["token_tis_batch_normalize"]["weight"]))


def test_the_inputs_reach_every_branch():
    """The dual clip, both caps of CISPO, both sides of DPPO's mask and every threshold act somewhere."""
    x, mask = inputs("verl", "wild"), inputs("verl", "wild")["mask"].bool()
    gradient = {
        name: recorded(name, "wild")[1] for name in GOLDEN["cases"] if "wild" in GOLDEN["cases"][name]["results"]
    }
    assert not torch.equal(gradient["vanilla"], gradient["vanilla_single_clip"])
    assert not torch.equal(gradient["cispo"], gradient["cispo_default"])
    assert not torch.equal(gradient["dppo_tv"], gradient["dppo_tv_cap_3"])
    for name in ("dppo_tv", "dppo_kl"):
        masked = mask & (gradient[name] == 0) & (x["advantage"] != 0)[:, None]
        assert set(x["advantage"][:, None].expand_as(mask)[masked].sign().tolist()) == {-1, 1}, name
    for name, given in GOLDEN["weights"].items():
        weight = number(given["weight"])[mask]
        assert 2.0 in weight or 0.0 in weight or name == "token_tis_batch_normalize"
