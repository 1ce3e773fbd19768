"""Identities between objectives, and between estimators: equal in value and gradient by algebra, so held to 1e-9."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from objectives import OBJECTIVES
from steps import names, random_inputs, value_and_gradient, weights_of

import gspo
from gspo.corrections import OPSM, GeometricBand, IcePop, SequenceMask, SequenceTIS, TokenMask, TokenTIS, TopEntropy

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
SPREADS = (2e-4, 0.05, 1.0)
"""Standard deviations of the token log-ratio: inside GSPO's band, inside GRPO's, outside both."""


def equal(one, other, scale=1.0, shift_of_value=0.0, **changes):
    for seed, spread in itertools.product(range(3), SPREADS):
        x = replace(random_inputs(seed, spread=spread), **{k: f(seed, spread) for k, f in changes.items()})
        value, gradient = value_and_gradient(one, x)
        expected, expected_gradient = value_and_gradient(other, x)
        torch.testing.assert_close(value, scale * expected + shift_of_value, **CLOSE)
        torch.testing.assert_close(gradient, scale * expected_gradient, **CLOSE)


# ---- one gradient on-policy ----------------------------------------------------------------------------------


def test_on_policy_all_policy_gradients_of_one_average_are_the_same():
    """Under seq-mean: GRPO, GSPO, GSPO-token, SAPO, GMPO, DHPO with any mixing, SSPO with any gate."""
    x = random_inputs(0)
    x = replace(x, old_logprobs=x.logprobs)
    by_average = {}
    for objective in OBJECTIVES:
        if objective.traits.is_policy_gradient:
            key = tuple(weights_of(objective, x)[0].flatten().tolist())
            by_average.setdefault(key, []).append(value_and_gradient(objective, x)[1])
    assert sorted(len(found) for found in by_average.values())[-1] >= 15
    for found in by_average.values():
        for gradient in found:
            torch.testing.assert_close(gradient, found[0], **CLOSE)


@pytest.mark.parametrize("mixing", [0.0, 0.2, 1.0, "entropy"])
@pytest.mark.parametrize("reading", ["mixed", "separate"])
def test_dhpo_on_policy_is_grpo_whatever_the_mixing(mixing, reading):
    x = random_inputs(1)
    x = replace(x, old_logprobs=x.logprobs)
    dhpo = value_and_gradient(gspo.DHPO(mixing=mixing, reading=reading), x)[1]
    torch.testing.assert_close(dhpo, value_and_gradient(gspo.GRPO(), x)[1], **CLOSE)


# ---- end points and special cases ----------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["mixed", "separate"])
def test_dhpo_ends_at_grpo_and_gspo_token(reading):
    equal(gspo.DHPO(mixing=1.0, reading=reading), gspo.GRPO(clip_low=0.2, clip_high=0.28))
    equal(gspo.DHPO(mixing=0.0, reading=reading), gspo.GSPOToken())


def test_dhpos_readings_differ_only_where_the_branches_leave_in_opposite_directions():
    bounds = {"clip_token_low": 0.1, "clip_token_high": 0.1, "clip_sequence_low": 0.05, "clip_sequence_high": 0.05}
    found = 0
    for seed in range(20):
        x = random_inputs(seed, spread=0.2)
        gap = (x.logprobs - x.old_logprobs).masked_fill(~x.mask, 0.0)
        token = gap.exp()
        sequence = (gap.sum(1, keepdim=True) / x.mask.sum(1, keepdim=True).clamp(min=1)).exp()
        opposite = ((token > 1.1) & (sequence < 0.95)) | ((token < 0.9) & (sequence > 1.05))
        mixed, separate = (value_and_gradient(gspo.DHPO(reading=r, **bounds), x)[1] for r in ("mixed", "separate"))
        differs = (mixed - separate).abs() > 1e-12
        assert not (differs & ~opposite).any()
        found += int(differs.sum())
    assert found > 0


def test_dual_clip_is_abc_with_eps2_of_one():
    eps, c = 0.2, 3.0
    abc = gspo.ABCGRPO(eps1=eps, eps2=1.0, eps3=c - 1, eps4=eps)
    equal(gspo.DualClip(base=gspo.GRPO(clip_low=eps, clip_high=eps), c=c), abc)


def test_dual_clip_far_away_is_its_base():
    for base in (gspo.GRPO(), gspo.GSPO(clip_low=0.1, clip_high=0.1), gspo.DAPO()):
        equal(gspo.DualClip(base=base, c=1e6), base)


def test_sspo_without_a_gate_is_gspo_without_a_clip_and_gmpo_without_a_bound():
    free = gspo.GSPO(clip_low=math.inf, clip_high=math.inf)
    equal(gspo.SSPO(gate="identity"), free)
    equal(gspo.GMPO(delta=math.inf), free)


def test_a_flat_arctan_gate_tends_to_the_identity():
    x = random_inputs(2, spread=0.05)
    soft = value_and_gradient(gspo.SSPO(tau=1e-4), x)[1]
    torch.testing.assert_close(soft, value_and_gradient(gspo.SSPO(gate="identity"), x)[1], rtol=1e-6, atol=1e-9)


def test_luspo_is_gspo_at_length_one_and_length_times_it_elsewhere():
    x = random_inputs(3, units=1, spread=2e-3)
    bounds = {"clip_low": 1e-3, "clip_high": 1e-3}
    for got, expected in zip(*(value_and_gradient(o(**bounds), x) for o in (gspo.LUSPO, gspo.GSPO)), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)
    x = random_inputs(3, spread=2e-3)
    long, plain = (value_and_gradient(o(**bounds), x)[1] for o in (gspo.LUSPO, gspo.GSPO))
    torch.testing.assert_close(long, plain * x.mask.sum(dim=1, keepdim=True), **CLOSE)


def test_egsw_with_a_hot_softmax_is_its_base():
    x = random_inputs(4)
    hot = gspo.EGSW(temperature=1e9, base=gspo.GRPO())
    for got, expected in zip(value_and_gradient(hot, x), value_and_gradient(gspo.GRPO(), x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_egsw_with_a_cold_softmax_trains_the_best_alone():
    x = random_inputs(4)
    gradient = value_and_gradient(gspo.EGSW(temperature=1e-3, alpha=0.0, level="sequence"), x)[1]
    for g in x.group.unique():
        rows = ((x.group == g) & x.mask.any(dim=1)).nonzero()[:, 0]
        best = rows[x.advantage[rows].argmax()]
        others = rows[rows != best]
        assert gradient[others].abs().max() < 1e-100 < gradient[best].abs().max()


def test_agro_of_pairs_from_the_old_policy_is_rebel_over_four_eta():
    """beta = 1/eta, reference = old policy, G = 2."""
    for eta in (0.5, 1.0, 4.0):
        for seed in range(4):
            x = random_inputs(seed, groups=5, size=2)
            x = replace(x, reference_logprobs=x.old_logprobs, mask=x.mask | (torch.arange(7) == 0))
            agro, rebel = (value_and_gradient(o, x) for o in (gspo.AGRO(beta=1 / eta), gspo.REBEL(eta=eta)))
            for got, expected in zip(agro, rebel, strict=True):
                torch.testing.assert_close(got, expected / (4 * eta), **CLOSE)


def test_agro_at_the_reference_is_a_centred_policy_gradient_of_token_sums():
    """-1/(P (G - 1)) (R_i - mean R) on every unit: no KL is felt at pi = pi_ref, and beta cancels."""
    x = random_inputs(5)
    x = replace(x, reference_logprobs=x.logprobs, mask=x.mask | (torch.arange(7) == 0))
    mean = x.rewards.view(3, 4).mean(dim=1).repeat_interleave(4)
    expected = -((x.rewards - mean) / (3 * 3))[:, None] * x.mask
    for beta in (0.01, 0.1, 2.0):
        torch.testing.assert_close(value_and_gradient(gspo.AGRO(beta=beta), x)[1], expected, **CLOSE)


def test_trpa_of_one_pair_is_dpo_of_means():
    """With two levels, kappa = 1 and one token a row, TRPA's pairs are DPO's."""
    x = random_inputs(6, units=1)
    x = replace(x, rewards=(x.rewards > 0.5).double(), mask=torch.ones_like(x.mask))
    trpa, dpo = (value_and_gradient(o, x) for o in (gspo.TRPA(kappa=1.0, kl_coef=0.0), gspo.DPO()))
    for got, expected in zip(trpa, dpo, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_trpa_without_any_pair_falls_back_for_the_whole_step():
    """One group alone has no pair: it weighs nothing while others have, and by itself it is pushed by level."""
    x = random_inputs(7, groups=2, size=2)
    x = replace(x, rewards=torch.tensor([1.0, 1.0, 1.0, 0.0]).double(), mask=torch.ones_like(x.mask))
    objective = gspo.TRPA(kl_coef=0.0)
    assert not value_and_gradient(objective, x)[1][:2].any()
    alone = x.rows(torch.arange(2))
    value, gradient = value_and_gradient(objective, alone)
    mean = (alone.logprobs - alone.reference_logprobs).mean(dim=1)
    torch.testing.assert_close(value, torch.nn.functional.softplus(-mean).mean(), **CLOSE)
    assert (gradient < 0).all()  # level 1 goes up


# ---- constants of gates --------------------------------------------------------------------------------------


def weight_of_gate(objective, log_ratio, advantage=1.0):
    """The factor on grad log pi of a single unit at a given ratio."""
    leaf = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    loss = gspo.loss(
        objective,
        leaf,
        old_logprobs=torch.zeros(1, 1, dtype=torch.float64),
        mask=torch.ones(1, 1, dtype=torch.bool),
        advantage=torch.tensor([advantage], dtype=torch.float64),
    ).loss
    loss.backward()
    return -leaf.grad.item() / advantage


def test_sapos_weight():
    """r sech^2(tau (r - 1) / 2): 1 at 1, about 1.4 at 1.5, largest (1.57) near 2, 0.05 at e^2."""
    weight = lambda r: weight_of_gate(gspo.SAPO(), math.log(r))  # noqa: E731
    for r in (0.3, 1.0, 1.5, 2.0, 7.4):
        assert weight(r) == pytest.approx(r / math.cosh((r - 1) / 2) ** 2, rel=1e-9)
    grid = torch.linspace(0.5, 5, 451).tolist()
    best = max(grid, key=weight)
    assert weight(best) == pytest.approx(1.57, abs=0.01) and 1.8 < best < 2.3
    assert weight(1.5) == pytest.approx(1.41, abs=0.01) and weight(7.4) == pytest.approx(0.05, abs=0.01)
    steeper = weight_of_gate(gspo.SAPO(), math.log(3), advantage=-1.0)
    assert steeper == pytest.approx(3 / math.cosh(1.05) ** 2, rel=1e-9) and steeper < weight(3)


def test_sspos_weights():
    """arctan: w / (1 + tau^2 l^2), w = exp(arctan(tau l) / tau). sigmoid: w r (1 - sigmoid(r - 1)), w = 4 sigmoid."""
    for tau, log_ratio in itertools.product((1.0, 3.0), (-2.0, 0.0, 0.4, 5.0)):
        expected = math.exp(math.atan(tau * log_ratio) / tau) / (1 + (tau * log_ratio) ** 2)
        assert weight_of_gate(gspo.SSPO(tau=tau), log_ratio) == pytest.approx(expected, rel=1e-9)
    sigmoid = gspo.SSPO(gate="sigmoid")
    assert weight_of_gate(sigmoid, 0.0) == pytest.approx(1.0, rel=1e-12)
    r = math.exp(0.4)
    share = 1 / (1 + math.exp(1 - r))
    assert weight_of_gate(sigmoid, 0.4) == pytest.approx(4 * share * r * (1 - share), rel=1e-9)
    assert r * (1 - share) / 0.5 == pytest.approx(1.13, abs=0.01)  # one token's pull in a long sequence


def test_a_one_sided_gate_follows_its_tangent_on_the_other_side():
    for gate in ("arctan", "sigmoid"):
        one, two = (gspo.SSPO(gate=gate, tau=2.0, one_sided=side) for side in (True, False))
        assert weight_of_gate(one, 0.5) == pytest.approx(weight_of_gate(two, 0.5), rel=1e-12)
        assert weight_of_gate(one, -0.5) > weight_of_gate(two, -0.5)
        assert weight_of_gate(one, -0.5, advantage=-1.0) == pytest.approx(weight_of_gate(two, -0.5), rel=1e-12)


def test_vespos_weight():
    """phi(1) = 1; largest at k / lambda: 1.21 at 2/3 where A > 0, 1.24 at 3/2 where A < 0."""
    weight = lambda r, a: weight_of_gate(gspo.VESPO(), math.log(r), a)  # noqa: E731
    assert weight(1.0, 1.0) == pytest.approx(1.0) and weight(1.0, -1.0) == pytest.approx(1.0)
    assert weight(2 / 3, 1.0) == pytest.approx(1.21, abs=0.01) and weight(1.5, -1.0) == pytest.approx(1.24, abs=0.01)
    assert all(weight(2 / 3 + d, 1.0) < weight(2 / 3, 1.0) for d in (-0.05, 0.05))


def test_gmpo_cuts_the_side_that_the_advantage_pushes_to():
    objective = gspo.GMPO()
    assert weight_of_gate(objective, 0.5, 1.0) == 0.0 and weight_of_gate(objective, -0.5, -1.0) == 0.0
    assert weight_of_gate(objective, -0.5, 1.0) == pytest.approx(math.exp(-0.5))
    assert weight_of_gate(objective, 0.5, -1.0) == pytest.approx(math.exp(0.5))


# ---- corrections ---------------------------------------------------------------------------------------------


def corrected(correction, base=None, mismatch=0.4, seed=0):
    """(correction, step) with log-probs of a sampler that is off by `mismatch`."""
    from gspo.functional import _step

    x = random_inputs(seed)
    sampler = x.old_logprobs + mismatch * torch.randn(x.mask.shape, generator=torch.Generator().manual_seed(9)).double()
    step = _step(x.mask, x.advantage, x.old_logprobs, x.group, x.rewards, None, sampler, None, x.entropy)
    return step, correction(step) if correction.when == "stored" else None


def test_corrections_against_their_formulas():
    step, _ = corrected(TokenTIS())
    for i, t in step.mask.nonzero().tolist():
        a = (step.old_logprobs - step.sampler_logprobs)[i][step.mask[i]]
        token, total = math.exp(step.old_logprobs[i, t] - step.sampler_logprobs[i, t]), math.exp(a.sum())
        mean = math.exp(a.mean())
        expected = {
            TokenTIS(cap=1.2): min(token, 1.2),
            SequenceTIS(cap=1.2): min(total, 1.2),
            SequenceTIS(cap=1.2, ratio="geometric"): min(mean, 1.2),
            TokenMask(cap=1.2): token if token <= 1.2 else 0.0,
            SequenceMask(cap=1.2): total if total <= 1.2 else 0.0,
            IcePop(low=0.8, high=1.3): token if 0.8 <= token <= 1.3 else 0.0,
            GeometricBand(low=0.9, high=1.1): float(0.9 <= mean <= 1.1),
        }
        for correction, value in expected.items():
            weight = correction(step).weight.expand_as(step.mask)[i, t].item()
            assert weight == pytest.approx(value, rel=1e-12), correction


def test_kept_is_the_share_of_units_with_any_weight():
    for correction in (TokenMask(cap=1.1), SequenceMask(cap=1.1), IcePop(low=0.9, high=1.1), GeometricBand()):
        step, made = corrected(correction)
        weight = made.weight.expand_as(step.mask)[step.mask]
        assert made.kept == pytest.approx((weight != 0).double().mean().item())
        assert made.kept < 1
    assert corrected(TokenTIS())[1].kept == 1.0


def test_top_entropy_keeps_its_share_of_the_step():
    for share in (0.05, 0.2, 0.5, 1.0):
        step, made = corrected(TopEntropy(share=share))
        kept = made.weight.bool()
        number = int(step.mask.sum())
        assert abs(int(kept.sum()) - share * number) <= 1 and not kept[~step.mask].any()
        if kept.sum() < number:
            assert step.old_entropy[kept].min() >= step.old_entropy[step.mask & ~kept].max()


def test_opsm_drops_bad_sequences_that_moved_far():
    x = random_inputs(0)
    gap = (x.old_logprobs - x.logprobs).masked_fill(~x.mask, 0.0).sum(1) / x.mask.sum(1).clamp(min=1)
    delta = gap[x.advantage < 0].sort().values[-2].item() - 1e-9
    terms = gspo.Corrected(base=gspo.GRPO(), corrections=(OPSM(delta=delta),))
    gradient, plain = (value_and_gradient(t, x)[1] for t in (terms, gspo.GRPO()))
    dropped = (x.advantage < 0) & (gap > delta)
    assert dropped.sum() == 2 and not gradient[dropped].any()
    torch.testing.assert_close(gradient[~dropped], plain[~dropped], **CLOSE)


def test_a_correction_stands_once():
    with pytest.raises(ValueError, match="each may stand there once"):
        gspo.Corrected(base=gspo.GRPO(), corrections=(TokenTIS(), OPSM(), TokenTIS(cap=3.0)))


def test_corrections_leave_denominators_alone():
    """A masked token takes its own share away and gives none to the others."""
    x = random_inputs(0)
    sampler = x.old_logprobs.clone()
    sampler[0, 0] -= 5.0
    assert x.mask[0, 0]
    both = []
    for objective in (gspo.DAPO(), gspo.Corrected(base=gspo.DAPO(), corrections=(TokenMask(),))):
        leaf = x.logprobs.clone().requires_grad_(True)
        gspo.loss(
            objective, leaf, old_logprobs=x.old_logprobs, sampler_logprobs=sampler, mask=x.mask, advantage=x.advantage
        ).loss.backward()
        both.append(leaf.grad)
    assert both[1][0, 0] == 0 and both[0][0, 0] != 0
    both[0][0, 0] = 0
    torch.testing.assert_close(*both, **CLOSE)


# ---- advantages ----------------------------------------------------------------------------------------------


def advantages(estimator, rewards, group_size, **given):
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    return gspo.advantages(estimator, rewards, torch.arange(len(rewards)) // group_size, **given)


def test_opo_is_the_mean_baseline_at_equal_lengths():
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0)).double()
    equal_lengths = torch.full((12,), 7)
    got = advantages(gspo.OPO(), rewards, 4, length=equal_lengths)
    torch.testing.assert_close(got, advantages(gspo.GroupMean(), rewards, 4), **CLOSE)
    lengths = torch.arange(1, 13)
    got = advantages(gspo.OPO(exponent=0.0), rewards, 4, length=lengths)
    torch.testing.assert_close(got, advantages(gspo.GroupMean(), rewards, 4), **CLOSE)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scope", ["group", "batch"])
def test_opo_sums_to_zero_weighted_by_length(exponent, scope):
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(1)).double()
    rewards[5] = math.nan
    lengths = torch.arange(1, 13)
    got = advantages(gspo.OPO(exponent=exponent, scope=scope), rewards, 4, length=lengths)
    weighted = (lengths.double() ** exponent * got).view(3, 4)
    total = weighted.sum(dim=1) if scope == "group" else weighted.sum()
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-9)
    assert got[5] == 0


def test_gdpos_motivating_example():
    """G = 2, two binary rewards: (0,0) against (0,1), and (0,0) against (1,1)."""
    one, both = [[0, 0], [0, 1]], [[0, 0], [1, 1]]
    for rewards in (one, both):
        total = torch.tensor(rewards).sum(dim=1)
        grpo = advantages(gspo.GroupStd(eps=0.0), total, 2)
        torch.testing.assert_close(grpo, torch.tensor([-0.5, 0.5]).double() * math.sqrt(2), **CLOSE)
    for rewards, expected in ((one, 0.5**0.5), (both, 2**0.5)):
        got = decoupled(gspo.GDPO(eps=0.0), rewards)
        torch.testing.assert_close(got, torch.tensor([-expected, expected], dtype=torch.float64), **CLOSE)


def decoupled(estimator, rewards):
    from gspo.advantages import AdvantageInput

    rewards = torch.tensor(rewards, dtype=torch.float64)
    rows = torch.zeros(len(rewards), dtype=torch.long)
    batch = AdvantageInput(rewards=rewards, total=rewards.sum(dim=1), group=rows, length=rows + 1)
    return estimator.decoupled(batch)


@pytest.mark.parametrize(
    ("size", "number", "grpo", "gdpo"), [(2, 2, 2, 3), (3, 2, 4, 6), (4, 2, 7, 14), (2, 3, 2, 4), (4, 3, 14, 45)]
)
def test_gdpo_tells_more_outcomes_apart(size, number, grpo, gdpo):
    """Distinct sorted advantage vectors over all multisets of binary outcomes."""
    outcomes = list(itertools.product((0.0, 1.0), repeat=number))
    found = {"grpo": set(), "gdpo": set()}
    for rewards in itertools.combinations_with_replacement(outcomes, size):
        plain = advantages(gspo.GroupStd(eps=1e-9), torch.tensor(rewards).sum(dim=1), size)
        for name, value in (("grpo", plain), ("gdpo", decoupled(gspo.GDPO(eps=1e-9), rewards))):
            found[name].add(tuple(round(v, 4) + 0.0 for v in value.sort().values.tolist()))
    assert (len(found["grpo"]), len(found["gdpo"])) == (grpo, gdpo)


def test_gdpo_of_mirrored_rewards_is_zero_unless_weights_differ():
    mirrored = [[1.0, 0.0], [0.0, 1.0]]
    assert not advantages(gspo.GDPO(), mirrored, 2).any()
    assert advantages(gspo.GDPO(weights=(2.0, 1.0)), mirrored, 2)[0] > 0


def test_gdpo_of_one_reward_is_grpo_whitened():
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(2)).double()
    plain = advantages(gspo.GroupStd(), rewards, 4)
    expected = (plain - plain.mean()) / (plain.std(correction=1) + 1e-4)
    torch.testing.assert_close(advantages(gspo.GDPO(), rewards[:, None], 4), expected, rtol=1e-9, atol=1e-9)


def test_gdpo_leaves_missing_rewards_out():
    rewards = torch.tensor([[1.0, math.nan], [0.0, 1.0], [0.5, 0.0], [math.nan, math.nan]]).double()
    got = advantages(gspo.GDPO(), rewards, 4)
    y = torch.tensor([0.5 / (0.5 + 1e-4), -0.5 / (0.5 + 1e-4) + 0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)])
    expected = ((y - y.mean()) / (y.std(correction=1) + 1e-4)).double()
    torch.testing.assert_close(got[:3], expected, rtol=1e-5, atol=1e-5)
    assert got[3] == 0


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_enumeration_of_all_sets(k):
    for rewards in ([0, 0, 1, 0, 1, 0], [0, 0.5, 0.5, 1, 0.2, 0.3], [1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1]):
        best = {s: max(rewards[i] for i in s) for s in itertools.combinations(range(6), k)}
        mean = sum(best.values()) / len(best)
        std = math.sqrt(sum((v - mean) ** 2 for v in best.values()) / len(best))
        with_i = [[v for s, v in best.items() if i in s] for i in range(6)]
        expected = [(sum(v) / len(v) - mean) / (std + 1e-4) if std > 1e-9 else 0.0 for v in with_i]
        got = advantages(gspo.PassAtK(k=k), rewards, 6)
        torch.testing.assert_close(got, torch.tensor(expected).double(), rtol=1e-7, atol=1e-9)


def test_a_star_is_the_reward_over_the_optimal_value():
    from gspo.advantages import optimal_value

    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    value = optimal_value(rewards, beta=0.5)
    assert value == pytest.approx(0.5 * math.log((math.exp(2) + 3) / 4))
    assert optimal_value(rewards, beta=1e6) == pytest.approx(0.25, abs=1e-4)
    got = advantages(gspo.AStar(), rewards, 1, values=torch.full((4,), value))
    torch.testing.assert_close(got, rewards.double() - value, rtol=1e-6, atol=1e-7)


def test_reinforce_pp_per_token_is_per_row_at_its_defaults_and_whitens_over_tokens():
    rewards, mask = torch.tensor([1.0, 0.0, 0.5]).double(), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    row = gspo.advantages(gspo.ReinforcePP(), rewards, torch.arange(3), mask=mask)
    near = gspo.advantages(gspo.ReinforcePP(gamma=1 - 1e-12), rewards, torch.arange(3), mask=mask)
    torch.testing.assert_close(near, row[:, None] * mask, rtol=1e-6, atol=1e-6)
    every = row[:, None].expand_as(mask)[mask]
    assert every.mean().abs() < 1e-9 and every.var(correction=1).item() == pytest.approx(1.0, abs=1e-6)


def test_reinforce_pp_discounts_and_charges_kl_per_token():
    mask = torch.ones(2, 3, dtype=torch.bool)
    old = torch.zeros(2, 3).double()
    reference = torch.tensor([[-0.1, 0.0, 0.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    given = {"mask": mask, "old_logprobs": old, "reference_logprobs": reference}
    got = gspo.advantages(
        gspo.ReinforcePP(gamma=0.5, kl_coef=2.0), torch.tensor([1.0, 0.0]).double(), torch.arange(2), **given
    )
    per_token = torch.tensor([[-0.2, 0.0, 1.4], [0.0, 0.0, 0.0]], dtype=torch.float64)
    returns = torch.zeros_like(per_token)
    for i, t in itertools.product(range(2), range(3)):
        returns[i, t] = sum(0.5 ** (s - t) * per_token[i, s] for s in range(t, 3))
    expected = (returns - returns.mean()) / (returns.var(correction=1) + 1e-8).sqrt()
    torch.testing.assert_close(got, expected, **CLOSE)


CUT = [o for o in OBJECTIVES if o.traits.reads_advantage and o.name not in ("cispo", "vespo")]
"""CISPO's bounds cap a weight and leave it; VESPO's weight underflows far out without any bound."""


@pytest.mark.parametrize("objective", CUT, ids=names)
def test_explanations_know_where_the_gradient_is_gone(objective):
    """A bound is marked on exactly the units that lost their gradient, at three spreads."""
    from gspo.functional import _step
    from gspo.types import Scores

    for seed, spread in itertools.product(range(3), (0.02, 0.3, 1.5)):
        x = random_inputs(seed, spread=spread)
        gradient = value_and_gradient(objective, x)[1]
        step = _step(x.mask, x.advantage, x.old_logprobs, x.group, x.rewards, x.reference_logprobs, None, None)
        why = objective.explain(Scores(logprobs=x.logprobs, entropy=x.entropy), step)
        if why is None:
            assert gradient[x.mask].all()
        else:
            assert torch.equal((gradient == 0)[x.mask], (why.bound != 0)[x.mask])
