"""The laws of a policy and its layouts: every family x layout x micro-batch budget equals the plain full forward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import FAMILIES, OTHERS, SHAPE, VOCABULARY, network, ragged_step, step_of
from transformers import GptOssConfig, MambaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import gspo
from gspo.policies import Network, TokenScorer, TrainedPolicy
from gspo.policies.layouts import cheapest
from gspo.policies.master import AdamW, MasterWeights
from gspo.sampling import Sampling, sampling_logits

# A layout, and the price of a query-key pair that makes it attend under a mask (0: free) or by blocks (dear).
LAYOUTS = (("padded", 0), ("packed", 0), ("packed", 10**9), ("shared_prefix", 0), ("shared_prefix", 10**9), ("auto", 0))
WIDE = gspo.GRPO(clip_low=0.9, clip_high=9.0)


def slow_logprobs(net, step, sampling):
    """Row by row: the model's own full logits, log-softmax, one gather."""
    out = torch.zeros(step.mask.shape, dtype=torch.float64)
    for i, (prompt, completion) in enumerate(zip(step.payload.prompt, step.payload.completion, strict=True)):
        logits = net.model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
        logits = logits[len(prompt) - 1 : -1]
        ids = torch.tensor(completion, dtype=torch.long)
        log_p = sampling_logits(logits, sampling, keep=ids).log_softmax(dim=-1)
        row = log_p[torch.arange(len(ids)), ids]
        out[i, : len(ids)] = torch.where(step.mask[i, : len(ids)], row, torch.zeros_like(row))
    return out


def gradients(net, run):
    for p in net.model.parameters():
        p.grad = None
    run()
    return {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}


def attending(net, pair):
    """The network with a price per query-key pair, which decides how packed tokens are attended to."""
    net.shape = replace(net.shape, pair=pair)
    return net


def scorer(net, layout, **settings):
    name, pair = layout
    settings = {"scoring": Sampling(), "micro_batch_tokens": 10**6, **settings}
    return TokenScorer(network=attending(net, pair), layout=name, **settings)


def in_float64(net):
    """transformers' norms compute in float32 whatever the model's dtype; here they are the model's own arithmetic."""

    def norm(module, inputs, output):
        (x,) = inputs
        weight = 1 + module.weight if "Gemma" in type(module).__name__ else module.weight
        eps = getattr(module, "eps", None) or module.variance_epsilon
        return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight

    for module in net.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.register_forward_hook(norm)
    return net


def check_equal(net, layout, budget, step, close):
    """Log-probs and every parameter's gradient, against the model's own full logits row by row."""
    sampling = Sampling(temperature=0.8)
    policy = TrainedPolicy(scorer(net, layout, scoring=sampling, micro_batch_tokens=budget), AdamW())
    weight = WIDE.weights(step, WIDE.counts(step))
    scores = policy.logprobs(step)
    expected = slow_logprobs(net, step, sampling).detach().to(scores.logprobs.dtype)
    torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=close * 10)
    assert not scores.logprobs[~step.mask].any() and torch.isfinite(scores.logprobs).all()

    def slow():
        lp = slow_logprobs(net, step, sampling).to(step.old_logprobs.dtype)
        gspo.loss(WIDE, lp, old_logprobs=step.old_logprobs, mask=step.mask, advantage=step.advantage).loss.backward()

    want = gradients(net, slow)
    got = gradients(net, lambda: policy.forward_backward(step, [weight], [WIDE]))
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        largest = max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=close * largest, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("budget", [10**6, 25])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_equal_to_the_plain_forward_in_value_and_gradient(family, layout, budget):
    # Eager attention, which a softcap needs, has its softmax in float32 whatever the dtype.
    is_exact = "cap" not in family and "moe" not in family
    check_equal(in_float64(network(family)), layout, budget, ragged_step(1), 1e-11 if is_exact else 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3-tied", "llama", "mistral-sliding"])
def test_equal_in_float32(family, layout):
    net = network(family, dtype=torch.float32)
    check_equal(net, layout, 40, ragged_step(2, dtype=torch.float32), 1e-5)


def turns_step():
    """Two conversations of three turns, with alternatives at each; one completion twice; an empty one; token 0 is the
    padding id and occurs as a token.

    The prompt of a turn is the one before it, the completion chosen there and a reply.
    """
    rows, group = [], 0
    for first in ((3, 0, 5, 7, 2, 9, 4, 4, 8, 1), (3, 0, 5, 7, 2, 9, 4, 4, 8, 6, 6)):
        prompt = first
        for turn in range(3):
            for tail in ((4, 0, 6), (4, 0, 6), (9,), (), (4, 0, 6, 2, 2, 0, 1, 3, 3, 0, 5, 5, turn)):
                rows.append((group, prompt, tail))
            prompt = (*prompt, 4, 0, 6, 2, 2, 0, 1, 3, 3, 0, 5, 5, turn, 0, 27)
            group += 1
    return step_of(rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nested_prefixes_are_equal_too(layout):
    check_equal(in_float64(network()), layout, 10**6, turns_step(), 1e-11)


def test_nested_prefixes_stand_once():
    """Three turns of 17 to 45 tokens with five completions each: what goes forward is hardly more than the longest."""
    step = turns_step()
    chosen = [
        cheapest(name, step.payload.prompt, step.payload.completion, network().shape, "cpu")
        for name in ("padded", "packed", "shared_prefix")
    ]
    padded, packed, shared = (candidate.tokens for candidate in chosen)
    assert shared < packed / 5 < padded / 5


def test_activations_computed_again_change_nothing():
    """Checkpointing runs each layer twice, in the backward pass too through the attention of the layout."""
    results = []
    for is_on in (False, True):
        for layout in LAYOUTS:
            net = network(dtype=torch.float32)
            net.checkpoints_activations = is_on
            step = ragged_step(2, dtype=torch.float32)
            policy = TrainedPolicy(scorer(net, layout), AdamW())
            assert not net.refusal  # asked, and that by a forward pass, before passes are counted
            calls = []
            net.body.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            weight = [WIDE.weights(step, WIDE.counts(step))]
            results.append(gradients(net, lambda p=policy, s=step, w=weight: p.forward_backward(s, w, [WIDE])))
            assert len(calls) == 1 + is_on
            assert not any(m.training for m in net.model.modules())
    for plain, again in zip(results[: len(LAYOUTS)], results[len(LAYOUTS) :], strict=True):
        assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("way", ["masked", "blocks"])
def test_a_wrong_layout_is_caught(monkeypatch, way):
    """Planted defect: completions that see their neighbours."""
    import gspo.policies.layouts as module

    def leaky(*arguments):
        packed = real(*arguments)
        return replace(packed, end=np.full_like(packed.end, len(packed.end)))

    real = module.pack
    monkeypatch.setattr(module, "pack", leaky)
    with pytest.raises(AssertionError):
        pair = 0 if way == "masked" else 10**9
        check_equal(network("llama"), ("shared_prefix", pair), 10**6, ragged_step(1), 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scoring_pass_equals_training_pass_to_the_bit(layout):
    net = network(dtype=torch.float32)
    step = ragged_step(2, dtype=torch.float32)
    policy = TrainedPolicy(scorer(net, layout, micro_batch_tokens=40), AdamW())
    scored = policy.logprobs(step)
    trained = policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
    assert torch.equal(scored.logprobs, trained.logprobs)
    assert torch.equal(scored.entropy, trained.entropy)


def test_entropy_is_that_of_the_sampling_distribution():
    net = network()
    step = ragged_step(3)
    scores = TokenScorer(network=net, scoring=Sampling(top_k=1), micro_batch_tokens=10**6).logprobs(step)
    assert scores.entropy.max() <= torch.log(torch.tensor(2.0)) + 1e-6  # at most the best token and the scored one


def test_sharing_is_refused_where_it_would_change_the_mathematics():
    """By name where the reason is known; `auto` takes padded rows then."""
    mamba = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    sinks = GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 2)
    gpt2 = network("gpt2")
    gpt2.model.train()
    for net, reason in (
        (Network(AutoModelForCausalLM.from_config(mamba).eval()), "linear_attention"),
        (Network(AutoModelForCausalLM.from_config(sinks).eval()), "sinks"),
        (gpt2, "dropout"),
    ):
        for layout in ("packed", "shared_prefix"):
            with pytest.raises(ValueError, match=rf"{reason}.*padded"):
                TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=1, layout=layout)
        assert TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=1).allowed_layout == "padded"


def test_a_model_that_mixes_tokens_is_found_out_by_its_answers():
    """A model whose tokens meet outside attention, and whose configuration does not say so."""
    net = network()

    def mix(module, inputs, output):
        return output + output.cumsum(dim=1)

    net.body.layers[0].mlp.register_forward_hook(mix)
    with pytest.raises(ValueError, match=r"answers differ.*padded"):
        TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=1, layout="packed")


def test_bf16_trains_float32_masters():
    """Gradients of many micro-batches add up in float32, and updates smaller than bf16's grain are not lost."""
    net = network(dtype=torch.bfloat16)
    step = ragged_step(4, dtype=torch.float32)
    policy = TrainedPolicy(
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
        policy = TrainedPolicy(TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=budget), AdamW(lr=1e-3))
        policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
        norms.append(policy.optim_step(1e-3))
    assert norms[0] > 0 and abs(norms[0] / norms[1] - 1) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compiled_forward_gives_the_same_gradients(layout):
    found = []
    for is_compiled in (False, True):
        net = Network(network(dtype=torch.float32).model, is_compiled=is_compiled)
        step = ragged_step(2, dtype=torch.float32)
        policy = TrainedPolicy(scorer(net, layout), AdamW())
        weight = [WIDE.weights(step, WIDE.counts(step))]
        found.append(gradients(net, lambda p=policy, s=step, w=weight: p.forward_backward(s, w, [WIDE])))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * max(1.0, gradient.abs().max().item()))


def test_a_gradient_of_the_step_before_is_not_used_again():
    """Half-precision copies keep their gradient buffers: what a step does not touch counts as zero in it."""
    params = {name: torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)) for name in "ab"}
    weights = MasterWeights(params.items(), AdamW(max_grad_norm=0.0))
    norms = []
    for names in ("ab", "a", "ab"):
        for _ in range(2):  # two micro-batches add up
            sum((params[name] * 3).sum() for name in names).backward()
        norms.append(weights.step(1e-3))
    assert norms == pytest.approx([(8 * 36) ** 0.5, (4 * 36) ** 0.5, (8 * 36) ** 0.5])
