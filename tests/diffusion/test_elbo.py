"""The estimate is exact: it equals full enumeration, whoever is scored beside it, and shares its draws."""

from itertools import combinations

import numpy as np
import pytest
import torch
from masked_models import MASK, bert, modern_bert, network, ragged_step, scorer, step_of

import gspo
from gspo.policies.diffusion import DiffusionPolicy
from gspo.policies.diffusion_network import DiffusionNetwork
from gspo.policies.masks import Elbo, MeanField, Passes
from gspo.policies.master import AdamW
from gspo.policies.trained import TrainedPolicy
from gspo.training.batch import MiniBatch
from gspo.training.update import drawn_anew, prepare, update

WIDE = gspo.GRPO(clip_low=0.9, clip_high=9.0)


class Listed:
    """Masks that are given."""

    redraws = True

    def __init__(self, hidden, weight):
        self.hidden, self.weight = np.array(hidden), np.array(weight)
        self.number = self.hidden.shape[0]

    def passes(self, mask, rows, draw):
        return Passes(np.repeat(self.hidden[None], len(mask), 0), np.repeat(self.weight[None], len(mask), 0))


def log_p(net, prompt, completion, hidden, canvas=6):
    """[L] log-probs of the completion where it is hidden, from the model's own output, position by position."""
    ids = [*prompt, *[MASK if i in hidden else t for i, t in enumerate(completion)]]
    ids += [MASK] * (len(prompt) + canvas - len(ids))
    with torch.no_grad():
        logits = net.model(input_ids=torch.tensor([ids])).logits[0]
    return [
        logits[len(prompt) + i - net.logit_shift].log_softmax(-1)[t].item() if i in hidden else 0.0
        for i, t in enumerate(completion)
    ]


def enumerated(net, prompt, completion):
    """The bound with nothing drawn: over sizes x, the mean over subsets of x of 1/x times what is hidden."""
    size = len(completion)
    total = np.zeros(size)
    for x in range(1, size + 1):
        subsets = list(combinations(range(size), x))
        total += sum(np.array(log_p(net, prompt, completion, set(s))) for s in subsets) / len(subsets) / x
    return total


@pytest.mark.parametrize("logit_shift", (0, 1))
@pytest.mark.parametrize("make", (bert, modern_bert))
@pytest.mark.parametrize("size", (1, 3, 5))
@pytest.mark.parametrize("is_coupled", (True, False))
def test_all_masks_with_their_probabilities_give_the_enumerated_bound(make, logit_shift, size, is_coupled):
    """The estimator's own weights, over every mask that it can draw and how likely it draws it: unit by unit."""
    net = network(make=make, logit_shift=logit_shift)
    prompt, completion = (3, 7, 2), (5, 9, 1, 4, 8)[:size]
    total = torch.zeros(size, dtype=torch.float64)
    lowest = 0 if is_coupled else 1
    for x in range(lowest, size + 1):
        subsets = list(combinations(range(size), x))
        for subset in subsets:
            hidden = [[i in subset for i in range(size)]]
            weight = [size / max(x, 1)]
            if is_coupled:
                hidden += [[i not in subset for i in range(size)]]
                weight = [(size + 1) / max(x, 1) / 2, (size + 1) / max(size - x, 1) / 2]
            step = step_of([(0, prompt, completion)])
            found = scorer(net, masking=Listed(hidden, weight)).logprobs(step).logprobs[0]
            total += found / len(subsets) / (size + 1 - lowest)
    np.testing.assert_allclose(total, enumerated(net, prompt, completion), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_coupled", (True, False))
def test_the_masks_drawn_are_those(is_coupled):
    """Sizes are uniform, subsets of a size are, and weights are as the table above has them."""
    size, draws = 4, 4000
    mask = np.ones((1, size), dtype=bool)
    counts: dict[int, int] = {}
    first = np.zeros(size)
    for draw in range(draws):
        made = Elbo(draws=1, is_coupled=is_coupled).passes(mask, np.array([3]), (7, draw))
        x = int(made.hidden[0, 0].sum())
        counts[x] = counts.get(x, 0) + 1
        first += made.hidden[0, 0]
        if is_coupled:
            assert (made.hidden[0, 0] ^ made.hidden[0, 1]).all()
            assert made.weight[0] == pytest.approx([(size + 1) / max(x, 1) / 2, (size + 1) / max(size - x, 1) / 2])
        else:
            assert made.weight[0] == pytest.approx([size / x])
    sizes = range(0 if is_coupled else 1, size + 1)
    assert sorted(counts) == list(sizes)
    expected = draws / len(sizes)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 18.5  # 4 degrees of freedom, p = 0.001
    assert np.ptp(first) < 5 * (draws / 4) ** 0.5


@pytest.mark.parametrize("is_coupled", (True, False))
def test_the_mean_over_many_draws_is_the_bound(is_coupled):
    net, prompt, completion = network(), (3, 7, 2), (5, 9, 1, 4, 8)
    rows = [(i, prompt, completion) for i in range(800)]  # rows have masks of their own
    found = scorer(net, masking=Elbo(draws=2, is_coupled=is_coupled)).logprobs(step_of(rows)).logprobs.sum(dim=1)
    error = found.std() / len(rows) ** 0.5
    assert abs(found.mean() - enumerated(net, prompt, completion).sum()) < 4 * error


def spread(masking, surprise, size):
    """Mean and standard deviation over 600 rows of the bound, where surprise depends on the share hidden."""
    mask = np.ones((600, size), dtype=bool)
    made = masking.passes(mask, np.arange(600), (1,))
    hidden, weight = made.hidden, made.weight[..., None]
    estimate = (weight * hidden * surprise(hidden.mean(axis=2, keepdims=True))).sum(axis=(1, 2))
    return estimate.mean(), estimate.std()


@pytest.mark.parametrize("size", (8, 32))
def test_variance_at_equal_forwards_depends_on_the_model(size):
    """Two passes either way. Where surprise grows with what is hidden, a mask and its complement make up for each
    other, in proportion exactly; where it does not depend on that, two masks of their own are as good or better."""
    coupled, independent = Elbo(draws=1), Elbo(draws=2, is_coupled=False)
    assert coupled.number == independent.number == 2
    own = np.exp(np.random.default_rng(0).normal(size=size))
    mean, deviation = spread(coupled, lambda share: own * share, size)
    assert mean == pytest.approx(own.sum() * (size + 1) / (2 * size)) and deviation < 1e-9
    mean_too, deviation = spread(independent, lambda share: own * share, size)
    assert mean_too == pytest.approx(mean, rel=0.05) and deviation > 0.2 * mean
    assert (
        spread(independent, lambda share: 0 * share + 1, size)[1]
        < 1e-9
        < spread(coupled, lambda share: 0 * share + 1, size)[1]
    )


def test_mean_field_is_the_product_given_the_prompt():
    net, step = network(), ragged_step(3)
    found = scorer(net, masking=MeanField()).logprobs(step).logprobs
    for row, (prompt, completion) in enumerate(zip(step.payload.prompt, step.payload.completion, strict=True)):
        hidden = set(step.mask[row].nonzero()[:, 0].tolist())
        expected = log_p(net, prompt, completion, hidden)
        assert found[row, : len(completion)].tolist() == pytest.approx(expected, abs=1e-12)
    assert not MeanField().redraws and Elbo().redraws


def test_what_is_given_is_seen_and_not_scored():
    """A unit outside the mask stands in every pass, and another token there changes the others' log-probs."""
    mask = torch.tensor([[True, False, True]])
    one, other = (step_of([(0, (3,), (5, t, 2))], mask=mask) for t in (4, 9))
    a, b = (scorer().logprobs(step).logprobs for step in (one, other))
    assert a[0, 1] == b[0, 1] == 0 and (a[0, [0, 2]] != b[0, [0, 2]]).all()


def test_what_might_follow_an_end_is_left_open():
    """A completion shorter than the canvas: masks stand behind it, as many as were decoded."""
    net, completion = network(), (5, 1)
    found = scorer(net, canvas=4, masking=MeanField()).logprobs(step_of([(0, (3, 7), completion)])).logprobs[0]
    assert found.tolist() == pytest.approx(log_p(net, (3, 7), completion, {0, 1}, canvas=4), abs=1e-12)
    short = scorer(net, canvas=2, masking=MeanField()).logprobs(step_of([(0, (3, 7), completion)])).logprobs[0]
    assert not torch.allclose(found, short)


# ---- the laws of a policy


def gradients(policy, step, terms=(WIDE,)):
    for p in policy.network.model.parameters():
        p.grad = None
    policy.forward_backward(step, [term.weights(step, term.counts(step)) for term in terms], terms)
    return {name: p.grad.clone() for name, p in policy.network.model.named_parameters() if p.grad is not None}


MASKINGS = (Elbo(), Elbo(draws=3, is_coupled=False), MeanField())


@pytest.mark.parametrize("make", (bert, modern_bert))
@pytest.mark.parametrize("masking", MASKINGS)
def test_micro_batches_and_neighbours_change_nothing(masking, make):
    """Budgets that hold all rows or one, in value and gradient; rows alone say what they say together."""
    step = ragged_step(1)
    policies = [TrainedPolicy(scorer(network(make=make), masking=masking, micro_batch_tokens=b), AdamW())
                for b in (10**6, 150, 1)]  # fmt: skip
    assert [len(p.scorer.micro_batches(step)) == len(step.group) for p in policies] == [False, False, True]
    whole = policies[0].logprobs(step)
    assert torch.isfinite(whole.logprobs).all() and not whole.logprobs[~step.mask].any()
    assert (whole.entropy[step.mask] > 0).any() and not whole.entropy[~step.mask].any()
    want = gradients(policies[0], step)
    for policy in policies[1:]:
        torch.testing.assert_close(policy.logprobs(step).logprobs, whole.logprobs, rtol=0, atol=1e-11)
        torch.testing.assert_close(policy.logprobs(step).entropy, whole.entropy, rtol=0, atol=1e-11)
        got = gradients(policy, step)
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-11 * max(1, gradient.abs().max().item()))
    order = list(range(len(step.group)))[::-1]
    turned = policies[0].logprobs(step.rows(order)).logprobs
    torch.testing.assert_close(turned, whole.logprobs[order], rtol=0, atol=1e-11)
    some = [2, 5]
    torch.testing.assert_close(policies[0].logprobs(step.rows(some)).logprobs, whole.logprobs[some], rtol=0, atol=1e-11)


def test_groups_stay_whole_where_asked():
    step = ragged_step(2)
    for rows in scorer(keeps_groups_whole=True, micro_batch_tokens=1).micro_batches(step):
        groups = set(step.group[rows].tolist())
        assert len(groups) == 1 and rows == (step.group == groups.pop()).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("masking", MASKINGS)
def test_scoring_pass_equals_training_pass_to_the_bit(masking, dtype):
    step = ragged_step(2, dtype=torch.float32)
    policy = TrainedPolicy(scorer(network(dtype), masking=masking, micro_batch_tokens=120), AdamW())
    found = policy.logprobs(step)
    trained = policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
    assert torch.equal(found.logprobs, trained.logprobs) and torch.equal(found.entropy, trained.entropy)


def test_entropy_has_a_gradient_where_it_is_asked_for():
    step = ragged_step(2)
    found = scorer().score(step, "gradient").entropy
    assert found.requires_grad and not scorer().score(step, "value").entropy.requires_grad


def test_the_ratio_of_the_first_update_is_one_in_every_epoch():
    """Old, reference and current log-probs have the masks of their update; another epoch has others."""
    step = ragged_step(4, dtype=torch.float32)
    policy = TrainedPolicy(scorer(network(torch.float32), micro_batch_tokens=200), AdamW(lr=1e-2))
    reference = policy.scorer.with_model(bert(torch.float32))  # the same weights
    terms = (gspo.GSPO(), gspo.ReferenceKL(coef=0.1, estimator="k2"))
    batches = drawn_anew([MiniBatch(samples=[], step=step)], 3, 0, 5)
    ready = prepare(batches, policy, terms, reference, rescore_old=True)
    assert torch.equal(ready[0].step.old_logprobs[step.mask], ready[0].step.reference_logprobs[step.mask])
    assert not torch.equal(ready[0].step.old_logprobs, ready[1].step.old_logprobs)
    ratios = [policy.forward_backward(b.step, [t.weights(b.step, t.counts(b.step)) for t in terms], terms)
              for b in ready]  # fmt: skip
    assert all(not result.explanation.log_ratio.any() for result in ratios)
    policy.weights.clear()
    update(policy, ready[0], terms, 1e-2)
    moved = update(policy, ready[1], terms, 1e-2).result
    assert moved.explanation.log_ratio.abs().max() > 1e-4


def test_no_generator_is_kept_or_moved():
    """The planted trap of the released code: scoring must not reseed, or draw from, the global generators."""
    before = torch.get_rng_state(), np.random.get_state()
    step = ragged_step(1)
    first = scorer().logprobs(step).logprobs
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    torch.rand(3)
    np.random.rand(3)
    assert torch.equal(scorer().logprobs(step).logprobs, first)


def test_draws_differ_by_every_counter_and_not_otherwise():
    mask, rows = np.ones((3, 12), dtype=bool), np.arange(3)
    draws = [(), (0,), (0, 0), (1, 0), (0, 1), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0)]
    made = [Elbo().passes(mask, rows, draw).hidden for draw in draws]
    assert all((a != b).any() for i, a in enumerate(made) for b in made[:i])
    assert all(np.array_equal(a, Elbo().passes(mask, rows, d).hidden) for a, d in zip(made, draws, strict=True))
    assert np.array_equal(made[0][[2]], Elbo().passes(mask[:1], rows[[2]], ()).hidden)  # a row alone


def test_a_mask_token_without_an_embedding():
    with pytest.raises(ValueError, match="13 token embeddings, none of them for mask token 13"):
        DiffusionNetwork(bert(), 13)


def test_a_reference_has_weights_of_its_own():
    policy = DiffusionPolicy(bert(), MASK, canvas=6)
    step = ragged_step(1)
    other = policy.scorer.with_model(bert(seed=1))
    assert isinstance(other.network, DiffusionNetwork)
    assert not torch.equal(other.logprobs(step).logprobs, policy.logprobs(step).logprobs)
