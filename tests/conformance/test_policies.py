"""The laws of a policy and its layouts: every family x layout x micro-batch budget equals the plain full forward."""

from dataclasses import replace

import pytest
import torch
from small_models import FAMILIES, VOCABULARY, network, ragged_step

import gspo
from gspo.policies import CausalLM, TokenScorer
from gspo.policies.likelihood import token_logprobs
from gspo.policies.master import AdamW
from gspo.sampling import Sampling, sampling_logits

LAYOUTS = ("padded", "shared_prefix")
WIDE = gspo.GRPO(clip_low=0.9, clip_high=9.0)


def slow_logprobs(net, step, sampling):
    """Row by row: the model's own full logits, log-softmax, one gather."""
    out = torch.zeros(step.mask.shape, dtype=torch.float64)
    for i, (prompt, completion) in enumerate(zip(step.payload.prompt, step.payload.completion, strict=True)):
        logits = net.model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
        logits = logits[len(prompt) - 1 : -1]
        ids = torch.tensor(completion)
        log_p = sampling_logits(logits, sampling, keep=ids).log_softmax(dim=-1)
        row = log_p[torch.arange(len(ids)), ids]
        out[i, : len(ids)] = torch.where(step.mask[i, : len(ids)], row, torch.zeros_like(row))
    return out


def gradients(net, run):
    for p in net.model.parameters():
        p.grad = None
    run()
    return torch.cat([p.grad.flatten() for p in net.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("budget", [10**6, 25])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_plain_forward_in_value_and_gradient(family, layout, budget):
    net = network(family)
    step = ragged_step(1)
    sampling = Sampling(temperature=0.8)
    policy = CausalLM(TokenScorer(network=net, scoring=sampling, micro_batch_tokens=budget, layout=layout), AdamW())
    weight = WIDE.weights(step, WIDE.counts(step))
    expected = slow_logprobs(net, step, sampling)
    scores = policy.logprobs(step)
    # Norms of transformers models run in float32, whatever the model's dtype.
    torch.testing.assert_close(scores.logprobs.double(), expected.detach(), rtol=0, atol=2e-6)
    assert not scores.logprobs[~step.mask].any() and torch.isfinite(scores.logprobs).all()

    def slow():
        lp = slow_logprobs(net, step, sampling)
        gspo.loss(WIDE, lp, old_logprobs=step.old_logprobs, mask=step.mask, advantage=step.advantage).loss.backward()

    want = gradients(net, slow)
    got = gradients(net, lambda: policy.forward_backward(step, [weight], [WIDE]))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6 * want.abs().max().item())


def test_a_wrong_layout_is_caught(monkeypatch):
    """Planted defect: completions that see their neighbours."""
    import gspo.policies.causal_lm as module

    def leaky(*args):
        layout = real(*args)
        seen = torch.ones(layout.mask.shape[-1], layout.mask.shape[-1]).tril().bool()
        return replace(layout, mask=seen.expand_as(layout.mask))

    real = module.lay_out
    monkeypatch.setattr(module, "lay_out", leaky)
    with pytest.raises(AssertionError):
        test_equal_to_the_plain_forward_in_value_and_gradient("llama", "shared_prefix", 10**6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scoring_pass_equals_training_pass_to_the_bit(layout):
    net = network(dtype=torch.float32)
    step = ragged_step(2, dtype=torch.float32)
    policy = CausalLM(TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=40, layout=layout), AdamW())
    scored = policy.logprobs(step)
    trained = policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
    assert torch.equal(scored.logprobs, trained.logprobs)
    assert torch.equal(scored.entropy, trained.entropy)


@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=5), Sampling(top_p=0.7)])
def test_chunked_likelihood_equals_unchunked(sampling, entropy):
    make = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, 8, generator=make, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(23, 8, generator=make, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(VOCABULARY, (23,), generator=make)
    pull = torch.randn(2, 23, generator=make, dtype=torch.float64)

    def run(chunk):
        weight.grad = hidden.grad = None
        lp, h = token_logprobs(
            lambda x: x @ weight.T, hidden, ids, sampling, entropy, chunk_elements=chunk, vocabulary=VOCABULARY
        )
        (lp @ pull[0] + (h @ pull[1] if entropy == "gradient" else 0)).backward()
        return lp.detach(), h.detach(), weight.grad.clone(), hidden.grad.clone()

    for whole, cut in zip(run(10**9), run(4 * VOCABULARY), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)


def test_likelihood_gradcheck_with_entropy():
    make = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 3, generator=make, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(5, 3, generator=make, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(7, (5,), generator=make)
    run = lambda h, w: token_logprobs(  # noqa: E731
        lambda x: x @ w.T, h, ids, Sampling(temperature=0.7), "gradient", chunk_elements=14, vocabulary=7
    )
    assert torch.autograd.gradcheck(run, (hidden, weight))


def test_entropy_is_that_of_the_sampling_distribution():
    net = network()
    step = ragged_step(3)
    scores = TokenScorer(network=net, scoring=Sampling(top_k=1), micro_batch_tokens=10**6).logprobs(step)
    assert scores.entropy.max() <= torch.log(torch.tensor(2.0)) + 1e-6  # at most the best token and the scored one


def test_sharing_is_refused_where_it_would_change_the_mathematics():
    net = network("gemma2-softcap")
    net.config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"sliding_attention.*padded"):
        TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=1, layout="shared_prefix")
    net.config.layer_types = ["full_attention"] * 2


def test_bf16_trains_float32_masters():
    """Gradients of many micro-batches add up in float32, and updates smaller than bf16's grain are not lost."""
    net = network(dtype=torch.bfloat16)
    step = ragged_step(4, dtype=torch.float32)
    policy = CausalLM(
        TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=20), AdamW(lr=1e-6, max_grad_norm=0.0)
    )
    before = {name: m.clone() for name, m in policy.weights.masters.items()}
    for _ in range(3):
        policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
        assert all(p.grad is None for p in net.model.parameters())
        policy.optim_step(1e-6)
    moved = [(policy.weights.masters[name] - before[name]).abs().max().item() for name in before]
    assert all(1e-7 < move < 1e-5 for move in moved)
    for name, p in net.model.named_parameters():
        assert torch.equal(p, policy.weights.masters[name].bfloat16())


def test_gradient_clipping_acts_on_the_whole_step():
    """The norm reported is that of all micro-batches together, and does not depend on how they were cut."""
    norms = []
    for budget in (10**6, 20):
        net = network(dtype=torch.float32)
        step = ragged_step(5, dtype=torch.float32)
        policy = CausalLM(TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=budget), AdamW(lr=1e-3))
        policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
        norms.append(policy.optim_step(1e-3))
    assert norms[0] > 0 and abs(norms[0] / norms[1] - 1) < 1e-4
