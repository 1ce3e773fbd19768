"""gspo.loss and gspo.advantages against slow readings: the papers' sums as loops over i and t, in float64.

Nothing of gspo is used in a reading. A row's units are the listed positions of its mask; "the paper's t" runs over
them. Gradients of a reading come from autograd on its one scalar.
"""

import math
from itertools import pairwise

import pytest
import torch

import gspo
from gspo.advantages import RLOO, GroupMean, GroupStd, LitePPO

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
NAN = float("nan")
BOUNDS = {"paper": (3e-4, 4e-4), "wide": (0.1, 0.25)}
SPREADS = {"paper": 2e-3, "wide": 0.3}


# ---- the readings ------------------------------------------------------------------------------------------


def least(ratio, advantage, low, high):
    """min(r A, clip(r, 1 - low, 1 + high) A), by cases, so that the gradient is that of the side taken."""
    clipped = 1 - low if ratio < 1 - low else 1 + high if ratio > 1 + high else ratio
    return ratio * advantage if ratio * advantage <= clipped * advantage else clipped * advantage


def units(x, i):
    return [t for t in range(x["mask"].shape[1]) if x["mask"][i, t]]


def likelihood_ratio(logprobs, x, i):
    """GSPO (7): (pi(y_i) / pi_old(y_i)) ** (1 / |y_i|), the products written out."""
    now, old = 1.0, 1.0
    for t in units(x, i):
        now = now * logprobs[i, t].exp()
        old = old * x["old_logprobs"][i, t].exp()
    return (now / old) ** (1 / len(units(x, i)))


def read_gspo(logprobs, x, low, high):
    """(5)"""
    total = 0.0
    for i in range(len(logprobs)):
        if units(x, i):
            total = total + least(likelihood_ratio(logprobs, x, i), x["advantage"][i], low, high)
    return -total / len(logprobs)


def read_gspo_token(logprobs, x, low, high):
    """(13), (14): the stop-gradients are numbers taken out of the graph."""
    total = 0.0
    for i in range(len(logprobs)):
        for t in units(x, i):
            stopped_sequence = float(likelihood_ratio(logprobs.detach(), x, i))
            stopped_token = math.exp(logprobs.detach()[i, t])
            ratio = stopped_sequence * logprobs[i, t].exp() / stopped_token
            advantage = x["advantage"][i] if x["advantage"].ndim == 1 else x["advantage"][i, t]
            total = total + least(ratio, advantage, low, high) / len(units(x, i))
    return -total / len(logprobs)


def token_surrogate(logprobs, x, i, t, low, high):
    return least(logprobs[i, t].exp() / x["old_logprobs"][i, t].exp(), x["advantage"][i], low, high)


def read_grpo(logprobs, x, low, high):
    """DeepSeekMath (3) without its KL."""
    total = 0.0
    for i in range(len(logprobs)):
        for t in units(x, i):
            total = total + token_surrogate(logprobs, x, i, t, low, high) / len(units(x, i))
    return -total / len(logprobs)


def read_dr_grpo(logprobs, x, low, high, max_length=11):
    total = 0.0
    for i in range(len(logprobs)):
        for t in units(x, i):
            total = total + token_surrogate(logprobs, x, i, t, low, high) / max_length
    return -total / len(logprobs)


def read_dapo(logprobs, x, low, high):
    total, length = 0.0, 0
    for i in range(len(logprobs)):
        length += len(units(x, i))
        for t in units(x, i):
            total = total + token_surrogate(logprobs, x, i, t, low, high)
    return -total / length


def kl_of_token(logprobs, x, i, t, estimator):
    """Schulman's estimators in the ratio r = pi_ref / pi; "unbiased" is DeepSeek-V3.2's."""
    r = x["reference_logprobs"][i, t].exp() / logprobs[i, t].exp()
    if estimator == "k1":
        return -r.log()
    if estimator == "k2":
        return r.log() ** 2 / 2
    k3 = r - 1 - r.log()
    return k3 if estimator == "k3" else logprobs[i, t].exp() / x["old_logprobs"][i, t].exp() * k3


def read_mean(value, x, averaging):
    """(1/B) sum_i (1/|y_i|) sum_t, or (1/N) sum_i sum_t, of value(i, t)."""
    rows = range(len(x["mask"]))
    number = sum(len(units(x, i)) for i in rows)
    total = 0.0
    for i in rows:
        for t in units(x, i):
            total = total + value(i, t) / (number if averaging == "token" else len(units(x, i)) * len(rows))
    return total


READINGS = {
    "gspo": (read_gspo, lambda low, high: gspo.GSPO(clip_low=low, clip_high=high)),
    "gspo_token": (read_gspo_token, lambda low, high: gspo.GSPOToken(clip_low=low, clip_high=high)),
    "grpo": (read_grpo, lambda low, high: gspo.GRPO(clip_low=low, clip_high=high)),
    "dr_grpo": (read_dr_grpo, lambda low, high: gspo.DrGRPO(max_length=11, clip_low=low, clip_high=high)),
    "dapo": (read_dapo, lambda low, high: gspo.DAPO(clip_low=low, clip_high=high)),
}


# ---- inputs ------------------------------------------------------------------------------------------------


def make_step(seed, spread):
    """Eight rows of up to nine units: ragged, holes, row 3 empty, row 5 with one unit, NaN behind the mask."""
    make = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    length = torch.randint(2, 10, (8,), generator=make)
    mask = (torch.arange(9)[None] < length[:, None]) & (torch.rand(8, 9, generator=make) > 0.2)
    mask[3], mask[5] = False, torch.arange(9) == 2
    old = -normal(8, 9).abs() - 0.1
    x = {
        "old_logprobs": old,
        "reference_logprobs": old + 0.3 * normal(8, 9),
        "entropy": normal(8, 9).abs(),
        "logprobs": old + spread * normal(8, 9),
    }
    return {
        **{name: value.masked_fill(~mask, NAN) for name, value in x.items()},
        "mask": mask,
        "advantage": normal(8),
    }


def of_gspo(terms, x, weight=None):
    """Loss and its gradients in log-probs and entropies."""
    logprobs, entropy = x["logprobs"].clone().requires_grad_(True), x["entropy"].clone().requires_grad_(True)
    out = gspo.loss(terms, weight=weight, **{**x, "logprobs": logprobs, "entropy": entropy}).loss
    out.backward()
    return out.detach(), *gradients(logprobs, entropy)


def of_reading(reading, x):
    """The same three for `reading(logprobs, entropy)`."""
    logprobs, entropy = x["logprobs"].clone().requires_grad_(True), x["entropy"].clone().requires_grad_(True)
    value = reading(logprobs, entropy)
    value.backward()
    return value.detach(), *gradients(logprobs, entropy)


def gradients(*leaves):
    return (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def rows_of(x, index):
    return {name: value[index] for name, value in x.items()}


def widened(x):
    """Five more columns: masked, and NaN in them."""
    wide = {n: torch.nn.functional.pad(v, (0, 5), value=NAN) for n, v in x.items() if n not in ("mask", "advantage")}
    return {**wide, "mask": torch.nn.functional.pad(x["mask"], (0, 5)), "advantage": x["advantage"]}


# ---- objectives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", READINGS)
def test_value_and_gradient_of_the_equation(name, bounds):
    read, make = READINGS[name]
    for seed in range(4):
        x = make_step(seed, SPREADS[bounds])
        expected = of_reading(lambda logprobs, entropy, x=x: read(logprobs, x, *BOUNDS[bounds]), x)
        assert expected[1].abs().sum() > 0
        assert_same(of_gspo(make(*BOUNDS[bounds]), x), expected)


@pytest.mark.parametrize("name", READINGS)
def test_padding_and_row_order(name):
    read, make = READINGS[name]
    x = make_step(5, 0.3)
    value, gradient, _ = of_reading(lambda logprobs, entropy: read(logprobs, x, 0.1, 0.25), x)
    got, got_gradient, _ = of_gspo(make(0.1, 0.25), widened(x))
    assert_same((got, got_gradient[:, :9]), (value, gradient))
    assert not got_gradient[:, 9:].any()
    order = torch.tensor([6, 2, 3, 0, 7, 5, 1, 4])
    got, got_gradient, _ = of_gspo(make(0.1, 0.25), rows_of(x, order))
    assert_same((got, got_gradient), (value, gradient[order]))


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7), (3,), (2, 4), (4, 5)], ids=str)
@pytest.mark.parametrize("name", READINGS)
def test_any_split_into_micro_batches(name, cuts):
    """Weights made once on the whole; one cut leaves the empty row alone in its micro-batch."""
    read, make = READINGS[name]
    x, objective = make_step(6, 0.3), make(0.1, 0.25)
    value, gradient, _ = of_reading(lambda logprobs, entropy: read(logprobs, x, 0.1, 0.25), x)
    weight = gspo.weights(objective, x["mask"])
    parts = [
        of_gspo(objective, rows_of(x, slice(start, end)), weight[start:end]) for start, end in pairwise((0, *cuts, 8))
    ]
    assert_same((sum(p[0] for p in parts), torch.cat([p[1] for p in parts])), (value, gradient))


def test_gspo_token_with_an_advantage_per_token():
    for seed in range(3):
        x = make_step(seed, 2e-3)
        advantage = torch.randn(8, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = {**x, "advantage": advantage.masked_fill(~x["mask"], NAN)}
        expected = of_reading(lambda logprobs, entropy, x=x: read_gspo_token(logprobs, x, 3e-4, 4e-4), x)
        assert_same(of_gspo(gspo.GSPOToken(), x), expected)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_gspo_token_is_gspo_for_one_advantage_per_sequence(bounds):
    """2507.18071, section 4.3: equal value, gradient and clip condition."""
    low, high = BOUNDS[bounds]
    sequence, token = gspo.GSPO(clip_low=low, clip_high=high), gspo.GSPOToken(clip_low=low, clip_high=high)
    for seed in range(4):
        x = make_step(seed, SPREADS[bounds])
        assert_same(of_gspo(token, x), of_gspo(sequence, x))
        assert_same(of_gspo(token, {**x, "advantage": x["advantage"][:, None].repeat(1, 9)}), of_gspo(sequence, x))
        assert gspo.loss(token, **x).diagnostics == pytest.approx(gspo.loss(sequence, **x).diagnostics, nan_ok=True)


def test_clip_fraction_counts_sequences_that_lost_their_gradient():
    x = make_step(1, 2e-3)
    _, gradient, _ = of_reading(lambda logprobs, entropy: read_gspo(logprobs, x, 3e-4, 4e-4), x)
    live = [i for i in range(8) if units(x, i)]
    stopped = [i for i in live if not gradient[i].any()]
    low = sum(float(x["advantage"][i]) < 0 for i in stopped)
    found = gspo.loss(gspo.GSPO(), **x).diagnostics
    assert 0 < low < len(stopped) < len(live)
    assert found["clip_ratio/low_mean"] == pytest.approx(low / len(live))
    assert found["clip_ratio/high_mean"] == pytest.approx((len(stopped) - low) / len(live))
    assert found["clip_ratio/region_mean"] == pytest.approx(len(stopped) / len(live))


# ---- terms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaging", ["sequence", "token"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "unbiased"])
def test_kl_to_the_reference(estimator, averaging):
    for seed in range(3):
        x = make_step(seed, 0.3)

        def reading(logprobs, entropy, x=x):
            return 0.04 * read_mean(lambda i, t: kl_of_token(logprobs, x, i, t, estimator), x, averaging)

        assert_same(of_gspo(gspo.ReferenceKL(estimator=estimator, averaging=averaging), x), of_reading(reading, x))


@pytest.mark.parametrize("averaging", ["sequence", "token"])
def test_entropy_bonus(averaging):
    x = make_step(2, 0.3)
    reading = lambda logprobs, entropy: -0.01 * read_mean(lambda i, t: entropy[i, t], x, averaging)  # noqa: E731
    assert_same(of_gspo(gspo.EntropyBonus(coef=0.01, averaging=averaging), x), of_reading(reading, x))


def test_terms_add_up_whole_and_in_micro_batches():
    """DeepSeekMath (3) with its KL, and an entropy bonus."""
    x = make_step(3, 0.3)
    terms = (gspo.GRPO(clip_low=0.1, clip_high=0.25), gspo.ReferenceKL(), gspo.EntropyBonus(coef=0.01))

    def reading(logprobs, entropy):
        kl = read_mean(lambda i, t: kl_of_token(logprobs, x, i, t, "k3"), x, "sequence")
        bonus = read_mean(lambda i, t: entropy[i, t], x, "token")
        return read_grpo(logprobs, x, 0.1, 0.25) + 0.04 * kl - 0.01 * bonus

    expected = of_reading(reading, x)
    assert_same(of_gspo(terms, x), expected)
    made = gspo.weights(terms, x["mask"])
    parts = [
        of_gspo(terms, rows_of(x, rows), tuple(w[rows] for w in made))
        for rows in (slice(0, 3), slice(3, 4), slice(4, 8))
    ]
    got = (sum(p[0] for p in parts), torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts]))
    assert_same(got, expected)


# ---- advantages --------------------------------------------------------------------------------------------


def mean_of(values):
    return math.fsum(values) / len(values)


def std_of(values):
    """Unbiased: n - 1."""
    return math.sqrt(math.fsum((v - mean_of(values)) ** 2 for v in values) / max(len(values) - 1, 1))


def read_advantages(name, rewards, group):
    """Unscored rows leave every statistic and get 0; a group with one scored member or equal scores gets 0."""
    every = [r for r in rewards if not math.isnan(r)]
    out = []
    for i, reward in enumerate(rewards):
        members = [j for j in range(len(rewards)) if group[j] == group[i] and not math.isnan(rewards[j])]
        scores = [rewards[j] for j in members]
        if math.isnan(reward) or len(set(scores)) < 2:
            out.append(0.0)
            continue
        others = [rewards[j] for j in members if j != i]
        out.append(
            {
                "group_std": (reward - mean_of(scores)) / (std_of(scores) + 1e-4),
                "group_mean": reward - mean_of(scores),
                "rloo": reward - mean_of(others),
                "lite_ppo": (reward - mean_of(scores)) / (std_of(every) + 1e-4),
            }[name]
        )
    return torch.tensor(out, dtype=torch.float64)


ESTIMATORS = (GroupStd(), GroupMean(), RLOO(), LitePPO())
REWARDS = {
    "plain": [1.0, 0.0, 0.25, 0.5, -1.0, 3.0, 3.5, 2.0],
    "unscored rows": [1.0, NAN, 0.25, 0.5, NAN, NAN, 3.5, 2.0],
    "a group with one score": [1.0, 0.0, 1.0, 0.0, NAN, NAN, NAN, 2.0],
    "a group with none": [1.0, 0.0, 1.0, 0.0, NAN, NAN, NAN, NAN],
    "no spread": [0.1, 0.1, 0.1, 0.1, 0.7, 0.7, 0.2, 0.7],
    "nothing": [NAN] * 8,
}
GROUPS = {
    "two of four": [0, 0, 0, 0, 1, 1, 1, 1],
    "mixed up": [7, 2, 2, 7, 2, 7, 7, 2],
    "one-member groups": [0, 1, 2, 3, 4, 4, 4, 4],
    "all alone": [0, 1, 2, 3, 4, 5, 6, 7],
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
def test_advantages(estimator, rewards, group):
    scores = torch.tensor(REWARDS[rewards], dtype=torch.float64)
    got = gspo.advantages(estimator, scores, torch.tensor(GROUPS[group]))
    torch.testing.assert_close(got, read_advantages(estimator.name, REWARDS[rewards], GROUPS[group]), **CLOSE)
