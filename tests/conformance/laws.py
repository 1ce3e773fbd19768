"""The laws of an objective. Each is a plain function that raises AssertionError; every objective runs every law.

What a law forbids is a bug that has been in a widely used trainer; `test_planted_defects.py` makes each again.
"""

from dataclasses import replace

import torch
from steps import loss_of, random_inputs, value_and_gradient, weights_of

from gspo.functional import as_terms

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def micro_batches_sum_to_the_step(terms):
    """Any split of the rows gives the loss and gradient of the whole, through weights made once on the whole."""
    for seed in range(3):
        x = random_inputs(seed)
        value, gradient = value_and_gradient(terms, x)
        weight = weights_of(terms, x)
        order = torch.randperm(len(x.group), generator=torch.Generator().manual_seed(seed))
        for size in (1, 3, 5):
            total, parts = 0.0, torch.zeros_like(gradient)
            for rows in order.split(size):
                part = tuple(w[rows] for w in weight)
                got, parts[rows] = value_and_gradient(terms, x.rows(rows), part if len(part) > 1 else part[0])
                total += got
            torch.testing.assert_close(total, value, **CLOSE)
            torch.testing.assert_close(parts, gradient, **CLOSE)


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
    """On-policy every policy-gradient term agrees with REINFORCE under its own averaging."""
    x = random_inputs(4)
    x = replace(x, old_logprobs=x.logprobs)
    _, gradient = value_and_gradient(terms, x)
    (weight,) = weights_of(terms, x)
    torch.testing.assert_close(gradient, -x.advantage[:, None] * weight, **CLOSE)


def zero_advantage_zero_gradient(terms):
    """Terms that declare it: such rows may skip the network."""
    x = random_inputs(5)
    _, gradient = value_and_gradient(terms, replace(x, advantage=torch.zeros_like(x.advantage)))
    is_inert = all(term.is_inert_at_zero_advantage for term in as_terms(terms))
    assert bool((gradient == 0).all()) == is_inert


def gradient_is_the_derivative(terms):
    """Against finite differences in float64; detached parts would show as a difference."""
    x = random_inputs(6, groups=2, size=2, units=3, spread=0.05)
    leaf = x.logprobs.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda lp: loss_of(terms, x, lp), (leaf,), eps=1e-7, atol=1e-5)


def empty_rows_count_in_row_denominators(terms):
    """A row without a trained unit contributes 0; a mean over rows still counts it, a mean over units does not."""
    x = random_inputs(7)
    assert not x.mask[1].any()
    without = torch.tensor([i for i in range(len(x.group)) if i != 1])
    full, fewer = value_and_gradient(terms, x)[0], value_and_gradient(terms, x.rows(without))[0]
    weight, kept = weights_of(terms, x)[0], weights_of(terms, x.rows(without))[0]
    ratio = weight[without][x.mask[without]] / kept[x.mask[without]]
    is_unit_mean = torch.allclose(weight[x.mask], 1 / x.mask.sum().double())
    expected = 1.0 if is_unit_mean else len(without) / len(x.group)
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected), **CLOSE)
    if len(as_terms(terms)) == 1:
        torch.testing.assert_close(full, fewer * expected, **CLOSE)


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
    masked_units_are_inert,
    padding_width_does_not_matter,
    row_order_does_not_matter,
    zero_advantage_zero_gradient,
    empty_rows_count_in_row_denominators,
    half_precision_is_raised,
    a_step_of_nothing_is_zero,
)
"""Laws for every list of terms."""

POLICY_GRADIENT_LAWS = (at_ratio_one_the_gradient_is_minus_advantage_times_weight,)
"""Laws for objectives that push log-probs along an advantage."""
