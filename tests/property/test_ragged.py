"""Hypothesis over the shapes that come up in training: ragged masks with holes, empty completions, groups of one."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from objectives import OBJECTIVES, TERMS
from steps import Inputs, names, value_and_gradient, weights_of

import gspo
from gspo.advantages import RLOO, GroupMean, GroupStd, LitePPO
from gspo.functional import as_terms

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
EVERY = [*OBJECTIVES, *TERMS]
ESTIMATORS = (GroupStd(), GroupMean(), RLOO(), LitePPO())


@st.composite
def masks(draw):
    """[B,T] bool, 1-6 rows of 1-5 units; any unit may be missing, whole rows too."""
    rows, units = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return torch.tensor(
        draw(st.lists(st.lists(st.booleans(), min_size=units, max_size=units), min_size=rows, max_size=rows))
    )


@st.composite
def steps(draw):
    """Inputs of an optimizer step; log-ratios from none to far outside every clip."""
    mask, seed = draw(masks()), draw(st.integers(0, 2**16))
    spread = draw(st.sampled_from([0.0, 1e-3, 0.3, 3.0]))
    make = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    rows, units = mask.shape
    old = -normal(rows, units).abs() - 0.05
    behind = torch.where(mask, 0.0, math.nan)
    return Inputs(
        logprobs=old + spread * normal(rows, units) + behind,
        old_logprobs=old + behind,
        reference_logprobs=old + 0.3 * normal(rows, units) + behind,
        entropy=normal(rows, units).abs() + behind,
        mask=mask,
        advantage=normal(rows)
        * torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=rows, max_size=rows))),
        group=torch.tensor(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))),
        rewards=normal(rows),
    )


@pytest.mark.parametrize("terms", EVERY, ids=names)
@given(x=steps())
def test_loss_is_finite_and_stays_inside_the_mask(terms, x):
    value, gradient = value_and_gradient(terms, x)
    assert value.isfinite() and gradient.isfinite().all()
    assert not gradient[~x.mask].any()


@pytest.mark.parametrize("terms", EVERY, ids=names)
@given(x=steps(), seed=st.integers(0, 100))
def test_any_partition_of_any_order_adds_up(terms, x, seed):
    """Micro-batches cut at random from shuffled rows, empty rows wherever they fall; whole groups where declared."""
    value, gradient = value_and_gradient(terms, x)
    weight = weights_of(terms, x)
    make = torch.Generator().manual_seed(seed)
    is_whole = any(term.traits.keeps_groups_whole for term in as_terms(terms))
    members = x.group.unique() if is_whole else torch.arange(len(x.mask))
    order = members[torch.randperm(len(members), generator=make)]
    cut = torch.rand(len(order) - 1, generator=make) < 0.5
    total, parts = 0.0, torch.zeros_like(gradient)
    for part in order.tensor_split((cut.nonzero()[:, 0] + 1).tolist()):
        rows = torch.isin(x.group, part).nonzero()[:, 0] if is_whole else part
        part = tuple(w[rows] for w in weight)
        got, parts[rows] = value_and_gradient(terms, x.rows(rows), part if len(part) > 1 else part[0])
        total += got
    torch.testing.assert_close(total, value, **CLOSE)
    torch.testing.assert_close(parts, gradient, **CLOSE)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o.traits.reads_advantage], ids=names)
@given(mask=masks())
def test_weights_sum_to_what_the_mean_says(objective, mask):
    """A mean over rows gives every row with a unit 1/B; over units 1 in all; a constant n_i / (B L); a sum n_i / B."""
    total = gspo.weights(objective, mask, group=torch.zeros(len(mask), dtype=torch.long)).sum(dim=1)
    live, units = mask.any(dim=1).double(), mask.sum(dim=1).double()
    expected = {"dr_grpo": units / (len(mask) * 11), "luspo": units / len(mask), "reinforce": units / len(mask)}
    over_units = units / max(units.sum().item(), 1)
    mean = live / len(mask) if objective.traits.counts_empty_rows else over_units
    is_listed = objective.name in expected and objective.traits.counts_empty_rows
    torch.testing.assert_close(total, expected[objective.name] if is_listed else mean, **CLOSE)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if not o.traits.reads_advantage], ids=names)
@given(x=steps())
def test_weights_of_group_losses_count_each_row_once(objective, x):
    """A row's value stands on all its units, so a row's weights add up to 1 / (pairs or groups), or to 0."""
    total = weights_of(objective, x)[0].sum(dim=1)
    positive = total[total > 0]
    torch.testing.assert_close(positive, positive[:1].expand_as(positive), **CLOSE)
    assert not total[~x.mask.any(dim=1)].any()


@given(x=steps())
def test_gspo_pulls_every_unit_of_a_sequence_alike(x):
    """2507.18071, section 4.2: one weight for all units of a sequence."""
    _, gradient = value_and_gradient(gspo.GSPO(clip_low=0.1, clip_high=0.2), x)
    for row, mask in zip(gradient, x.mask, strict=True):
        assert row[mask].unique().numel() <= 1


@given(x=steps())
def test_gspo_token_is_gspo(x):
    for low, high in ((3e-4, 4e-4), (0.1, 0.2)):
        sequence, token = gspo.GSPO(clip_low=low, clip_high=high), gspo.GSPOToken(clip_low=low, clip_high=high)
        for got, expected in zip(value_and_gradient(token, x), value_and_gradient(sequence, x), strict=True):
            torch.testing.assert_close(got, expected, **CLOSE)


rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, -2.0, math.nan]), st.integers(0, 3)), min_size=1, max_size=12
)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
@given(pairs=rewards_and_groups)
def test_advantages_of_any_groups(estimator, pairs):
    """Finite; 0 where unscored or without spread; centred within the group; a shift of the rewards changes nothing."""
    rewards = torch.tensor([r for r, _ in pairs], dtype=torch.float64)
    group = torch.tensor([g for _, g in pairs])
    got = gspo.advantages(estimator, rewards, group)
    assert got.isfinite().all()
    assert not got[rewards.isnan()].any()
    for g in group.unique():
        scored = (group == g) & ~rewards.isnan()
        assert abs(got[scored].sum().item()) < 1e-9
        if rewards[scored].unique().numel() < 2:
            assert (got[group == g] == 0).all()
        else:
            assert got[scored].argmax() == rewards[scored].argmax()
    torch.testing.assert_close(gspo.advantages(estimator, rewards + 8.0, group), got, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
@given(number=st.integers(1, 8), reward=st.floats(-1e6, 1e6))
def test_groups_of_one_have_no_advantage(estimator, number, reward):
    got = gspo.advantages(estimator, torch.full((number,), reward, dtype=torch.float64), torch.arange(number))
    assert (got == 0).all()
