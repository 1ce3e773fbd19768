"""The laws of an objective. Each is a plain function that raises AssertionError; every objective runs every law.

What a law forbids is a bug that has been in a widely used trainer; `test_planted_defects.py` makes each again.
"""

from dataclasses import replace

import torch
from steps import loss_of, random_inputs, value_and_gradient, weights_of

from gspo.functional import as_terms

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def micro_batches_sum_to_the_step(terms):
    """Splits of the rows, of whole groups where declared, give the loss and gradient of the whole."""
    whole = declares(terms, "keeps_groups_whole")
    for seed in range(3):
        x = random_inputs(seed)
        value, gradient = value_and_gradient(terms, x)
        for size in (1, 2) if whole else (1, 3, 5):
            total, parts = split(terms, x, rows_of_groups(x, size, seed) if whole else some_rows(x, size, seed))
            torch.testing.assert_close(total, value, **CLOSE)
            torch.testing.assert_close(parts, gradient, **CLOSE)


def only_declared_objectives_need_whole_groups(terms):
    """Cutting groups apart changes the gradient exactly where `keeps_groups_whole` says that rows interact."""
    x = random_inputs(0)
    gradient = value_and_gradient(terms, x)[1]
    changes = not torch.allclose(split(terms, x, some_rows(x, 3, 0))[1], gradient, **CLOSE)
    assert changes == declares(terms, "keeps_groups_whole")


def some_rows(x, size, seed):
    return torch.randperm(len(x.group), generator=torch.Generator().manual_seed(seed)).split(size)


def rows_of_groups(x, size, seed):
    order = torch.randperm(int(x.group.max()) + 1, generator=torch.Generator().manual_seed(seed))
    return [torch.isin(x.group, groups).nonzero()[:, 0] for groups in order.split(size)]


def split(terms, x, batches):
    """Sum of the losses and the joined gradient of micro-batches, with weights made on the whole."""
    weight = weights_of(terms, x)
    total, parts = 0.0, torch.zeros_like(x.logprobs)
    for rows in batches:
        got, parts[rows] = value_and_gradient(terms, x.rows(rows), tuple(w[rows] for w in weight))
        total += got
    return total, parts


def declares(terms, trait):
    return any(getattr(term.traits, trait) for term in as_terms(terms))


def masked_units_are_inert(terms):
    """What stands outside the mask, NaN included, changes neither loss nor gradient."""
    x = random_inputs(1)
    value, gradient = value_and_gradient(terms, x)
    for poison in (float("nan"), float("inf"), 1e9):
        spoil = lambda t, poison=poison: torch.where(x.mask, t, torch.full_like(t, poison))  # noqa: E731
        spoiled = replace(
            x,
            logprobs=spoil(x.logprobs),
            old_logprobs=spoil(x.old_logprobs),
            reference_logprobs=spoil(x.reference_logprobs),
            entropy=spoil(x.entropy),
            advantage=torch.where(x.mask.any(dim=1), x.advantage, poison),
            rewards=torch.where(x.mask.any(dim=1), x.rewards, poison),
        )
        got, got_gradient = value_and_gradient(terms, spoiled)
        torch.testing.assert_close(got, value, **CLOSE)
        torch.testing.assert_close(got_gradient, gradient, **CLOSE)


def padding_width_does_not_matter(terms):
    x = random_inputs(2)
    value, gradient = value_and_gradient(terms, x)
    wider = lambda t: torch.nn.functional.pad(t, (0, 9))  # noqa: E731
    fields = ("logprobs", "old_logprobs", "reference_logprobs", "entropy", "mask")
    got, got_gradient = value_and_gradient(terms, replace(x, **{f: wider(getattr(x, f)) for f in fields}))
    torch.testing.assert_close(got, value, **CLOSE)
    torch.testing.assert_close(got_gradient[:, : gradient.shape[1]], gradient, **CLOSE)


def row_order_does_not_matter(terms):
    x = random_inputs(3)
    value, gradient = value_and_gradient(terms, x)
    order = torch.randperm(len(x.group), generator=torch.Generator().manual_seed(0))
    got, got_gradient = value_and_gradient(terms, x.rows(order))
    torch.testing.assert_close(got, value, **CLOSE)
    torch.testing.assert_close(got_gradient, gradient[order], **CLOSE)


def at_ratio_one_the_gradient_is_minus_advantage_times_weight(terms):
    """On-policy every policy gradient is REINFORCE under its own averaging; the others say that they are none."""
    x = random_inputs(4)
    x = replace(x, old_logprobs=x.logprobs)
    _, gradient = value_and_gradient(terms, x)
    expected = -x.advantage[:, None] * sum(weights_of(terms, x))
    is_policy_gradient = all(term.traits.is_policy_gradient for term in as_terms(terms))
    assert torch.allclose(gradient, expected, **CLOSE) == is_policy_gradient


def rows_of_zero_advantage_may_be_left_out(terms):
    """Dropping them (whole groups, where rows interact) leaves every gradient as it is, exactly where declared."""
    x = random_inputs(5)
    is_zero = x.group == 1 if declares(terms, "keeps_groups_whole") else torch.arange(len(x.group)) % 3 == 0
    x = replace(x, advantage=x.advantage.masked_fill(is_zero, 0.0))
    _, gradient = value_and_gradient(terms, x)
    kept = (~is_zero).nonzero()[:, 0]
    _, without = value_and_gradient(terms, x.rows(kept), tuple(w[kept] for w in weights_of(terms, x)))
    may_skip = bool((gradient[is_zero] == 0).all()) and torch.allclose(gradient[kept], without, **CLOSE)
    assert may_skip == all(term.traits.skips_zero_advantage for term in as_terms(terms))


def gradient_is_the_derivative(terms):
    """Against finite differences in float64, exactly where no stop-gradient is declared."""
    x = random_inputs(6, groups=2, size=2, units=3, spread=0.05)
    if not refuses_unit_advantages(terms, x):
        x = replace(x, advantage=torch.randn(x.mask.shape, generator=torch.Generator().manual_seed(6)).double())
    leaf = x.logprobs.clone().requires_grad_(True)
    check = lambda: torch.autograd.gradcheck(  # noqa: E731
        lambda lp: loss_of(terms, x, lp), (leaf,), eps=1e-7, atol=1e-5, raise_exception=False
    )
    assert check() == all(term.traits.is_derivative for term in as_terms(terms))


def refuses_unit_advantages(terms, x):
    try:
        loss_of(terms, replace(x, advantage=torch.ones_like(x.logprobs)), x.logprobs)
    except ValueError as error:
        assert "[B]" in str(error)
        return True
    return False


def an_advantage_per_unit_is_taken_or_refused(terms):
    x = random_inputs(10)
    takes = all(term.traits.takes_unit_advantage for term in as_terms(terms))
    assert refuses_unit_advantages(terms, x) != takes
    if takes:  # one that is equal over a row is that row's advantage
        units = replace(x, advantage=x.advantage[:, None].expand_as(x.mask))
        for got, expected in zip(value_and_gradient(terms, units), value_and_gradient(terms, x), strict=True):
            torch.testing.assert_close(got, expected, **CLOSE)


def what_is_read_is_declared(terms):
    """Changing an input changes loss or gradient exactly where `needs` or `reads_advantage` names it."""
    x = random_inputs(11)
    before = value_and_gradient(terms, x)
    traits = [term.traits for term in as_terms(terms)]
    needs = {need.removesuffix("_gradient") for t in traits for need in t.needs}
    noise = torch.randn(x.mask.shape, generator=torch.Generator().manual_seed(1)).double()
    changed = {
        "old": replace(x, old_logprobs=x.old_logprobs + noise),
        "reference": replace(x, reference_logprobs=x.reference_logprobs + noise),
        "entropy": replace(x, entropy=x.entropy + noise.abs()),
        "rewards": replace(x, rewards=1 - x.rewards),
        "advantage": replace(x, advantage=-x.advantage),
    }
    for name, other in changed.items():
        after = value_and_gradient(terms, other)
        moves = not all(torch.allclose(a, b, **CLOSE) for a, b in zip(after, before, strict=True))
        expected = any(t.reads_advantage for t in traits) if name == "advantage" else name in needs
        assert moves == expected, name
    assert not (any(t.is_on_policy for t in traits) and "old" in needs)


def weights_come_before_old_logprobs(terms):
    """The first update's own forward pass may bring the old log-probs: weights, which come before it, read none."""
    x = random_inputs(13)
    noise = torch.randn(x.mask.shape, generator=torch.Generator().manual_seed(2)).double()
    moved = replace(x, old_logprobs=x.old_logprobs + noise)
    for before, after in zip(weights_of(terms, x), weights_of(terms, moved), strict=True):
        assert torch.equal(before, after)


def a_group_needs_as_many_completions_as_declared(terms):
    """In smaller groups nothing has a gradient; in groups of that size something has."""
    for term in as_terms(terms):
        for size, learns in ((term.traits.min_group - 1, False), (term.traits.min_group, True)):
            if size:
                x = random_inputs(12, groups=6, size=size)
                assert value_and_gradient(term, x)[1].any() == learns


def empty_rows_count_in_row_denominators(terms):
    """A row without a trained unit contributes 0; it counts in the denominator exactly where declared."""
    x = random_inputs(7)
    assert not x.mask[1].any()
    without = torch.tensor([i for i in range(len(x.group)) if i != 1])
    factors = []
    for term, weight, kept in zip(
        as_terms(terms), weights_of(terms, x), weights_of(terms, x.rows(without)), strict=True
    ):
        used = x.mask[without] & (kept > 0)
        ratio = weight[without][used] / kept[used]
        factors.append(len(without) / len(x.group) if term.traits.counts_empty_rows else 1.0)
        torch.testing.assert_close(ratio, torch.full_like(ratio, factors[-1]), **CLOSE)
    if len(factors) == 1:
        full, fewer = value_and_gradient(terms, x)[0], value_and_gradient(terms, x.rows(without))[0]
        torch.testing.assert_close(full, fewer * factors[0], **CLOSE)


def half_precision_is_raised(terms):
    """bf16 and fp16 log-probs are computed on in float32; float64 stays."""
    x = random_inputs(8)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        fields = ("logprobs", "old_logprobs", "reference_logprobs", "entropy")
        cast = replace(x, **{f: getattr(x, f).to(dtype) for f in fields})
        out = loss_of(terms, cast, cast.logprobs)
        assert out.dtype == expected
        raised = replace(cast, **{f: getattr(cast, f).to(expected) for f in fields})
        torch.testing.assert_close(out, loss_of(terms, raised, raised.logprobs))


def a_step_of_nothing_is_zero(terms):
    """All rows empty: loss 0, gradient 0, no NaN."""
    x = random_inputs(9)
    value, gradient = value_and_gradient(terms, replace(x, mask=torch.zeros_like(x.mask)))
    assert value == 0 and not gradient.any()


EVERY_LAW = (
    micro_batches_sum_to_the_step,
    only_declared_objectives_need_whole_groups,
    masked_units_are_inert,
    padding_width_does_not_matter,
    row_order_does_not_matter,
    at_ratio_one_the_gradient_is_minus_advantage_times_weight,
    rows_of_zero_advantage_may_be_left_out,
    gradient_is_the_derivative,
    an_advantage_per_unit_is_taken_or_refused,
    what_is_read_is_declared,
    weights_come_before_old_logprobs,
    a_group_needs_as_many_completions_as_declared,
    empty_rows_count_in_row_denominators,
    half_precision_is_raised,
    a_step_of_nothing_is_zero,
)
"""Every law, for every list of terms. An exception is a trait that the term declares and the law measures."""
