"""The laws of an advantage estimator, over every one that a recipe can name."""

import math
import typing

import pytest
import torch

import gspo
from gspo.advantages import Advantage

ESTIMATORS = (
    gspo.GroupStd(),
    gspo.GroupMean(),
    gspo.RLOO(),
    gspo.LitePPO(),
    gspo.GDPO(),
    gspo.GDPO(whiten="token"),
    gspo.OPO(),
    gspo.OPO(exponent=0.5, scope="batch"),
    gspo.ReinforcePP(),
    gspo.ReinforcePP(gamma=0.9, kl_coef=0.1),
    gspo.ReinforcePPBaseline(),
    gspo.AStar(),
    gspo.PassAtK(k=2),
    gspo.TurnReturns(),
    gspo.TurnReturns(gamma=0.9),
)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def inputs(seed=0, groups=4, size=4, units=5):
    make = torch.Generator().manual_seed(seed)
    rows = groups * size
    length = torch.randint(1, units + 1, (rows,), generator=make)
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    return {
        "rewards": normal(rows),
        "group": torch.arange(groups).repeat_interleave(size),
        "length": length,
        "mask": torch.arange(units)[None] < length[:, None],
        "values": normal(rows),
        "old_logprobs": normal(rows, units),
        "reference_logprobs": normal(rows, units),
        "turn": (torch.arange(units) // 2).expand(rows, -1),
        "turn_rewards": normal(rows, (units + 1) // 2),
    }


def estimate(estimator, x):
    return gspo.advantages(estimator, **x)


def law(function):
    return pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)(function)


def test_every_estimator_is_under_the_laws():
    assert {type(e) for e in ESTIMATORS} == set(typing.get_args(typing.get_args(Advantage)[0]))


@law
def test_row_order_does_not_matter(estimator):
    x = inputs()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = estimate(estimator, {name: value[order] for name, value in x.items()})
    torch.testing.assert_close(shuffled, estimate(estimator, x)[order], **CLOSE)


@law
def test_names_of_groups_do_not_matter(estimator):
    x = inputs()
    renamed = estimate(estimator, {**x, "group": 100 - 7 * x["group"]})
    torch.testing.assert_close(renamed, estimate(estimator, x), **CLOSE)


@law
def test_an_unscored_row_gets_nothing_and_changes_nobody(estimator):
    x = inputs()
    kept = torch.tensor([i for i in range(16) if i != 5])
    without = estimate(estimator, {name: value[kept] for name, value in x.items()})
    rewards = x["rewards"].clone()
    rewards[5] = math.nan
    got = estimate(estimator, {**x, "rewards": rewards})
    assert not got[5].any()
    torch.testing.assert_close(got[kept], without, **CLOSE)


@law
def test_a_shift_of_all_rewards_changes_nothing_but_against_a_fixed_value(estimator):
    x = inputs()
    if estimator.traits.gives_units:  # the KL inside the reward is not shifted, and gamma discounts a shift
        x["mask"] = torch.ones_like(x["mask"])
    moved = estimate(estimator, {**x, "rewards": x["rewards"] + 8.0})
    is_relative = estimator.name != "a_star" and not estimator.traits.gives_units
    is_relative |= isinstance(estimator, gspo.TurnReturns)  # all turns see the end, where the shift is
    assert torch.allclose(moved, estimate(estimator, x), rtol=1e-9, atol=1e-9) == is_relative


@law
def test_a_group_needs_as_many_completions_as_declared(estimator):
    for size, learns in ((estimator.traits.min_group - 1, False), (estimator.traits.min_group, True)):
        if size:
            assert estimate(estimator, inputs(2, groups=8, size=size)).any() == learns


@law
def test_shape_and_needs_are_as_declared(estimator):
    x = inputs()
    got = estimate(estimator, x)
    assert got.shape == (x["mask"].shape if estimator.traits.gives_units else x["rewards"].shape)
    assert got.isfinite().all()
    arguments = {"mask": "mask", "values": "values", "reference": "reference_logprobs", "turns": "turn"}
    for need in estimator.traits.needs:
        with pytest.raises(ValueError, match=need):
            estimate(estimator, {name: value for name, value in x.items() if name != arguments[need]})


@law
def test_equal_rewards_teach_nothing(estimator):
    """But a fixed value may be missed, and a KL inside the reward has a spread of its own."""
    x = inputs()
    x["turn_rewards"] = torch.zeros_like(x["turn_rewards"])
    x["mask"] = torch.ones_like(x["mask"])
    got = estimate(estimator, {**x, "rewards": torch.full((16,), 0.3, dtype=torch.float64)})
    assert got.any() == (
        estimator.name == "a_star" or (estimator.name == "reinforce_pp" and estimator.traits.gives_units)
    )
