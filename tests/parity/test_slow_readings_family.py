"""gspo.loss of the family against slow readings: each docstring's equations as loops, in float64.

Nothing of gspo is used in a reading; gradients of a reading come from autograd on its one scalar, with stop-gradients
as numbers taken out of the graph.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from steps import random_inputs

import gspo

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def units(x, i):
    return [t for t in range(x.mask.shape[1]) if x.mask[i, t]]


def rows_of(x, g):
    return [i for i in range(len(x.group)) if x.group[i] == g and units(x, i)]


def ratio(lp, x, i, t):
    return (lp[i, t] - x.old_logprobs[i, t]).exp()


def mean_over_rows(lp, x, of_unit):
    """1/B sum_i 1/|y_i| sum_t."""
    total = 0.0
    for i in range(len(lp)):
        for t in units(x, i):
            total = total + of_unit(i, t) / (len(units(x, i)) * len(lp))
    return -total


def mean_over_units(lp, x, of_unit):
    number = sum(len(units(x, i)) for i in range(len(lp)))
    return -sum(of_unit(i, t) for i in range(len(lp)) for t in units(x, i)) / number


def clip(value, low, high):
    return low if value < low else high if value > high else value


def least(value, clipped, advantage):
    return value * advantage if value * advantage <= clipped * advantage else clipped * advantage


def sigmoid(v):
    return 1 / (1 + (-v).exp())


def read_sapo(lp, x):
    def gain(i, t):
        tau = 1.0 if x.advantage[i] > 0 else 1.05
        return 4 / tau * sigmoid(tau * (ratio(lp, x, i, t) - 1)) * x.advantage[i]

    return mean_over_rows(lp, x, gain)


def read_sspo(gate):
    def read(lp, x):
        total = 0.0
        for i in range(len(lp)):
            product = 1.0
            for t in units(x, i):
                product = product * gate(ratio(lp, x, i, t))
            if units(x, i):
                total = total + product ** (1 / len(units(x, i))) * x.advantage[i]
        return -total / len(lp)

    return read


def read_dhpo(mixing):
    def read(lp, x):
        def gain(i, t):
            own = units(x, i)
            s = math.exp(sum((lp[i, u] - x.old_logprobs[i, u]).item() for u in own) / len(own))
            s = s * lp[i, t].exp() / lp[i, t].exp().item()
            a = mixing
            if mixing == "entropy":
                values = [x.entropy[i, u].item() for u in own]
                spread = max(values) - min(values)
                a = 0.5 if spread < 1e-6 else (x.entropy[i, t].item() - min(values)) / spread
            r = ratio(lp, x, i, t)
            clipped = a * clip(r, 0.8, 1.28) + (1 - a) * clip(s, 0.95, 1.1)
            return least(a * r + (1 - a) * s, clipped, x.advantage[i])

        return mean_over_rows(lp, x, gain)

    return read


def read_abc(lp, x):
    def gain(i, t):
        low, high = (0.9, 1.3) if x.advantage[i] > 0 else (0.95, 1.5)
        return clip(ratio(lp, x, i, t), low, high) * x.advantage[i]

    return mean_over_rows(lp, x, gain)


def grpo_gain(lp, x, i, t):
    return least(ratio(lp, x, i, t), clip(ratio(lp, x, i, t), 0.8, 1.2), x.advantage[i])


def read_egsw_token(lp, x):
    def gain(i, t):
        live = [j for j in rows_of(x, x.group[i]) if x.mask[j, t]]
        score = {j: math.exp((x.advantage[j].item() + 0.5 * x.entropy[j, t].item()) / 0.7) for j in live}
        return grpo_gain(lp, x, i, t) * len(live) * score[i] / sum(score.values())

    return mean_over_rows(lp, x, gain)


def read_egsw_sequence(lp, x):
    mean = {
        i: sum(x.entropy[i, t].item() for t in units(x, i)) / len(units(x, i)) for i in range(len(lp)) if units(x, i)
    }

    def gain(i, t):
        live = rows_of(x, x.group[i])
        score = {j: math.exp((x.advantage[j].item() + 0.5 * mean[j]) / 0.7) for j in live}
        return grpo_gain(lp, x, i, t) * len(live) * score[i] / sum(score.values())

    return mean_over_rows(lp, x, gain)


def sum_to_reference(lp, x, i):
    return sum(lp[i, t] - x.reference_logprobs[i, t] for t in units(x, i))


def read_agro(lp, x, beta=0.3):
    total, groups = 0.0, x.group.unique().tolist()
    for g in groups:
        q = [x.rewards[i] - beta * sum_to_reference(lp, x, i) for i in rows_of(x, g)]
        if len(q) > 1:
            mean = sum(q) / len(q)
            total = total + sum((v - mean) ** 2 for v in q) / (2 * (len(q) - 1) * beta)
    return total / len(groups)


def read_rebel(lp, x, eta=2.0):
    found = []
    for g in x.group.unique().tolist():
        d = {i: sum(lp[i, t] - x.old_logprobs[i, t] for t in units(x, i)) for i in rows_of(x, g)}
        found += [((d[i] - d[j]) - eta * (x.rewards[i] - x.rewards[j])) ** 2 for i, j in itertools.combinations(d, 2)]
    return sum(found) / len(found)


def read_dpo(lp, x, beta=0.2):
    found = []
    for g in x.group.unique().tolist():
        for w, l in itertools.permutations(rows_of(x, g), 2):
            if x.rewards[w] > x.rewards[l]:
                margin = beta * (sum_to_reference(lp, x, w) - sum_to_reference(lp, x, l))
                found.append(-sigmoid(margin).log())
    return sum(found) / len(found)


def read_trpa(lp, x):
    levels, found = (1.0, 0.5), []
    level = [1 + sum(float(r) < threshold for threshold in levels) for r in x.rewards]
    mean = {i: sum_to_reference(lp, x, i) / len(units(x, i)) for i in range(len(lp)) if units(x, i)}
    for g in x.group.unique().tolist():
        for w, l in itertools.permutations(rows_of(x, g), 2):
            if level[w] < level[l]:
                slope = 0.1 * (2.5 if level[w] == 1 else 1.0)
                found.append(-sigmoid(slope * (mean[w] - mean[l])).log())
    kl = [
        (x.old_logprobs[i, t] - lp[i, t]).exp() - (x.old_logprobs[i, t] - lp[i, t]) - 1
        for i in range(len(lp))
        for t in units(x, i)
    ]
    return sum(found) / len(found) + 0.5 * sum(kl) / len(kl)


def read_cispo(lp, x):
    weight = lambda i, t: clip(ratio(lp, x, i, t).item(), 0.7, 1.4)  # noqa: E731
    return mean_over_units(lp, x, lambda i, t: weight(i, t) * x.advantage[i] * lp[i, t])


def read_gmpo(lp, x):
    total = 0.0
    for i in range(len(lp)):
        gap = [lp[i, t] - x.old_logprobs[i, t] for t in units(x, i)]
        sign = 1.0 if x.advantage[i] > 0 else -1.0
        cut = [sign * min(sign * d, sign * clip(d, -0.2, 0.2)) for d in gap]
        total = total + (
            torch.as_tensor(sum(cut) / len(cut), dtype=torch.float64).exp() * x.advantage[i] if cut else 0.0
        )
    return -total / len(lp)


def read_luspo(lp, x):
    total = 0.0
    for i in range(len(lp)):
        if units(x, i):
            s = (sum(lp[i, t] - x.old_logprobs[i, t] for t in units(x, i)) / len(units(x, i))).exp()
            total = total + len(units(x, i)) * least(s, clip(s, 0.95, 1.05), x.advantage[i])
    return -total / len(lp)


def read_vespo(lp, x):
    def gain(i, t):
        w = math.exp(sum((lp[i, u] - x.old_logprobs[i, u]).item() for u in units(x, i)))
        k, lam = (2.0, 3.0) if x.advantage[i] > 0 else (3.0, 2.0)
        return math.exp(lam) * w**k * math.exp(-lam * w) * x.advantage[i] * lp[i, t]

    return mean_over_units(lp, x, gain)


def read_dual(lp, x):
    def gain(i, t):
        value = grpo_gain(lp, x, i, t)
        floor = 1.3 * x.advantage[i]
        return floor if x.advantage[i] < 0 and value < floor else value

    return mean_over_rows(lp, x, gain)


def read_dppo(kind):
    def read(lp, x):
        def gain(i, t):
            p, q, a = lp[i, t].exp().item(), x.old_logprobs[i, t].exp().item(), x.advantage[i].item()
            kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
            distance = abs(p - q) if kind == "tv" else kl
            masked = distance > 0.02 and ((a > 0 and p > q) or (a < 0 and p < q))
            return 0.0 if masked else min(p / q, 20.0) * a * lp[i, t]

        return mean_over_units(lp, x, gain)

    return read


def read_reinforce(lp, x):
    return -sum(x.advantage[i] * lp[i, t] for i in range(len(lp)) for t in units(x, i)) / len(lp)


EGSW = {"alpha": 0.5, "temperature": 0.7}
SEQUENCE = {"clip_sequence_low": 0.05, "clip_sequence_high": 0.1}
READINGS = [
    (gspo.SAPO(), read_sapo),
    (gspo.SSPO(gate="identity"), read_sspo(lambda r: r)),
    (gspo.SSPO(tau=2.0), read_sspo(lambda r: ((2 * r.log()).atan() / 2).exp())),
    (gspo.SSPO(gate="sigmoid", tau=1.5), read_sspo(lambda r: 4 / 1.5 * sigmoid(1.5 * (r - 1)))),
    (gspo.DHPO(mixing=0.3, **SEQUENCE), read_dhpo(0.3)),
    (gspo.DHPO(mixing="entropy", **SEQUENCE), read_dhpo("entropy")),
    (gspo.ABCGRPO(eps1=0.3, eps2=0.1, eps3=0.5, eps4=0.05), read_abc),
    (gspo.EGSW(**EGSW), read_egsw_token),
    (gspo.EGSW(level="sequence", **EGSW), read_egsw_sequence),
    (gspo.TRPA(levels=(1.0, 0.5), kl_coef=0.5), read_trpa),
    (gspo.AGRO(beta=0.3), read_agro),
    (gspo.REBEL(eta=2.0), read_rebel),
    (gspo.DPO(beta=0.2), read_dpo),
    (gspo.CISPO(clip_low=0.3, clip_high=0.4), read_cispo),
    (gspo.GMPO(delta=0.2), read_gmpo),
    (gspo.LUSPO(clip_low=0.05, clip_high=0.05), read_luspo),
    (gspo.VESPO(), read_vespo),
    (gspo.DualClip(c=1.3), read_dual),
    (gspo.DPPO(clip_low=0.02, clip_high=0.02), read_dppo("tv")),
    (gspo.DPPO(divergence="kl", clip_low=0.02, clip_high=0.02), read_dppo("kl")),
    (gspo.REINFORCE(), read_reinforce),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("objective", "reading"), READINGS, ids=lambda v: getattr(v, "name", ""))
def test_equals_its_reading(objective, reading, seed):
    x = random_inputs(seed, spread=0.3)
    x = replace(x, logprobs=x.logprobs.clamp(max=-0.01))  # probabilities below 1
    leaf = x.logprobs.clone().requires_grad_(True)
    expected = reading(leaf, x)
    (gradient,) = torch.autograd.grad(expected, leaf)
    ours = x.logprobs.clone().requires_grad_(True)
    out = gspo.loss(
        objective,
        ours,
        old_logprobs=x.old_logprobs,
        mask=x.mask,
        advantage=x.advantage,
        group=x.group,
        rewards=x.rewards,
        reference_logprobs=x.reference_logprobs,
        entropy=x.entropy,
    ).loss
    out.backward()
    torch.testing.assert_close(out.detach(), torch.as_tensor(expected).detach(), **CLOSE)
    torch.testing.assert_close(ours.grad, gradient, **CLOSE)
