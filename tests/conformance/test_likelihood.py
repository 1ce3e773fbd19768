"""The likelihood from hidden states: every head x entropy x cut equals plain full logits, and holds few of them."""

from dataclasses import dataclass

import peft
import pytest
import torch
from small_models import VOCABULARY, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import gspo.policies.likelihood as likelihood
import gspo.policies.linear_head as linear_head
from gspo.policies.likelihood import token_logprobs
from gspo.policies.linear_head import LinearHead
from gspo.sampling import Sampling, sampling_logits

WIDTH, UNITS = 8, 23
WHOLE, CUT = 10**9, 4 * VOCABULARY
HEADS = ("plain", "bias", "scale", "softcap", "scale-bias-softcap", "frozen", "frozen-bias-scale", "callable")
SAMPLINGS = {
    "plain": Sampling(),
    "temperature": Sampling(temperature=0.5),
    "greedy": Sampling(temperature=0.0),
    "top-k": Sampling(temperature=0.7, top_k=5),
    "top-p": Sampling(top_p=0.7),
}


def full_logprobs(head, hidden, ids, sampling, position=None):
    """(log-probability, entropy) from all logits at once, by torch's own functions."""
    rows = hidden if position is None else hidden[position]
    log_p = sampling_logits(head(rows), sampling, keep=ids).log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(dim=-1)
    return log_p[torch.arange(len(ids)), ids], entropy


@dataclass
class Case:
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    ids: torch.Tensor
    pull: torch.Tensor
    head: object

    def gradients(self):
        leaves = (self.hidden, self.weight, self.bias)
        return [x.grad.clone() for x in leaves if x is not None and x.grad is not None]

    def run(self, score, entropy, *arguments, **options):
        """Values, then the gradient of everything that requires one."""
        for x in (self.hidden, self.weight, self.bias):
            if x is not None:
                x.grad = None
        logprobs, value = score(self.head, self.hidden, self.ids, *arguments, **options)
        loss = logprobs @ self.pull[0] + (value @ self.pull[1] if entropy == "gradient" else 0.0)
        loss.backward()
        return [logprobs.detach(), value.detach(), *self.gradients()]


def case(kind, dtype=torch.float64, units=UNITS, positions=UNITS, vocabulary=VOCABULARY, width=WIDTH, spread=1.0):
    make = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)  # noqa: E731
    is_trained = "frozen" not in kind
    hidden = draw(positions, width).requires_grad_()
    weight = (spread * draw(vocabulary, width)).requires_grad_(is_trained)
    bias = draw(vocabulary).requires_grad_(is_trained) if "bias" in kind else None
    ids = torch.randint(vocabulary, (units,), generator=make)
    head = LinearHead(weight, bias, 0.3 if "scale" in kind else 1.0, 2.0 if "softcap" in kind else None)
    pull = draw(2, units)
    return Case(hidden, weight, bias, ids, pull, (lambda x: x @ weight.T) if kind == "callable" else head)


def close(got, want, tolerance):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    """Few logits take the same way as many, but for the test of that."""
    monkeypatch.setattr(likelihood, "SMALL_ELEMENTS", -1)


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request, monkeypatch):
    """Blocks of the linear head: one for everything, or many that divide neither rows nor columns."""
    if request.param == "small blocks":
        monkeypatch.setattr(linear_head, "ROWS", 5)
        monkeypatch.setattr(linear_head, "CACHED_ELEMENTS", 5 * 6)


@pytest.mark.parametrize("chunk", [WHOLE, CUT])
@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", HEADS)
def test_equals_full_logits_in_value_and_every_gradient(kind, sampling, entropy, chunk, blocks):
    made = case(kind)
    options = {"chunk_elements": chunk, "vocabulary": VOCABULARY}
    want = made.run(full_logprobs, entropy, SAMPLINGS[sampling])
    got = made.run(token_logprobs, entropy, SAMPLINGS[sampling], entropy, **options)
    if entropy == "none":
        assert not got[1].any()
        want[1] = got[1]
    assert len(got) == 2 + 1 + (0 if "frozen" in kind else 1 + ("bias" in kind))
    close(got, want, 1e-10)


@pytest.mark.parametrize("chunk", [WHOLE, 0])
@pytest.mark.parametrize("entropy", ["value", "gradient"])
@pytest.mark.parametrize("kind", ["plain", "bias", "scale-bias-softcap", "frozen"])
def test_float32_agrees_to_1e_5(kind, entropy, chunk):
    """At a vocabulary of several blocks; the full logits are those of float64."""
    exact = case(kind, units=300, positions=300, vocabulary=9000, width=32, spread=0.5)
    single = case(kind, torch.float32, units=300, positions=300, vocabulary=9000, width=32, spread=0.5)
    want = exact.run(full_logprobs, entropy, Sampling(temperature=0.7))
    got = single.run(token_logprobs, entropy, Sampling(temperature=0.7), entropy, chunk_elements=chunk)
    assert all(x.dtype == torch.float32 for x in got)
    close([x.double() for x in got], want, 1e-5)


@pytest.mark.parametrize("entropy", ["value", "gradient"])
@pytest.mark.parametrize("kind", [*HEADS, "general"])
def test_positions_that_predict_several_ids(kind, entropy, blocks):
    made = case(kind, positions=6)
    position = torch.randint(6, (UNITS,), generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=0.7, top_p=0.9 if kind == "general" else 1.0)
    want = made.run(full_logprobs, entropy, sampling, position=position)
    for chunk in (WHOLE, CUT):
        got = made.run(
            token_logprobs, entropy, sampling, entropy, chunk_elements=chunk, vocabulary=VOCABULARY, position=position
        )
        close(got, want, 1e-10)


def test_a_shared_position_is_put_through_the_head_once():
    made = case("plain", positions=2)
    rows = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                rows.append(arguments[-2].shape[0])
            return function(*arguments, **(kwargs or {}))

    with Counting(), torch.no_grad():
        token_logprobs(made.head, made.hidden, made.ids, Sampling(), position=made.ids % 2)
    assert rows == [2]


@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
@pytest.mark.parametrize("chunk", [WHOLE, 14])
@pytest.mark.parametrize("kind", ["bias", "scale-bias-softcap", "frozen", "callable"])
def test_gradcheck(kind, chunk, entropy, monkeypatch):
    monkeypatch.setattr(linear_head, "CACHED_ELEMENTS", 12)
    made = case(kind, units=5, positions=3, vocabulary=7, width=3)
    position = torch.tensor([0, 2, 2, 1, 0])

    def run(hidden, weight, *bias):
        head = LinearHead(weight, *bias, scale=0.3, softcap=2.0 if "softcap" in kind else None)
        head = head if kind != "callable" else (lambda x: x @ weight.T)
        got = token_logprobs(
            head, hidden, made.ids, Sampling(temperature=0.7), entropy, chunk, vocabulary=7, position=position
        )
        return got if entropy == "gradient" else got[0]

    leaves = [x for x in (made.hidden, made.weight, made.bias) if x is not None]
    assert torch.autograd.gradcheck(run, leaves)


def test_without_gradient_to_the_entropy_there_is_none():
    made = case("plain")
    logprobs, value = token_logprobs(made.head, made.hidden, made.ids, Sampling(), "value")
    assert logprobs.requires_grad and not value.requires_grad


def test_no_units():
    made = case("bias", units=0, positions=0)
    got = made.run(token_logprobs, "gradient", Sampling(), "gradient")
    assert [len(x) for x in got[:3]] == [0, 0, 0] and not got[3].any() and not got[4].any()


@pytest.mark.parametrize("kind", ["plain", "bias", "softcap", "frozen"])
def test_scoring_equals_training_to_the_bit(kind, blocks):
    made = case(kind, torch.float32)
    for chunk in (WHOLE, CUT):
        for entropy in ("value", "gradient"):
            train = token_logprobs(made.head, made.hidden, made.ids, Sampling(temperature=0.7), entropy, chunk)
            with torch.no_grad():
                score = token_logprobs(made.head, made.hidden, made.ids, Sampling(temperature=0.7), "value", chunk)
            assert torch.equal(score[0], train[0]) and torch.equal(score[1], train[1])


@pytest.mark.parametrize("kind", ["plain", "bias", "scale-bias-softcap", "frozen"])
@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("rows", [linear_head.ROWS, 1])
def test_bf16_rounds_logits_like_the_model_and_sums_in_float32(kind, certain, rows, monkeypatch):
    """Against autograd in bf16 through the same rounded logits; also where the chosen id has nearly all probability."""
    monkeypatch.setattr(linear_head, "ROWS", rows)
    made = case(kind, torch.bfloat16, units=64, positions=64, vocabulary=500, width=32, spread=1.0 if certain else 0.2)
    sampling = Sampling(temperature=0.7)
    if certain:
        made.ids = made.head(made.hidden).argmax(dim=-1)
    made.pull = made.pull.float()
    want = made.run(full_logprobs, "value", sampling)
    exact = case(kind, units=64, positions=64, vocabulary=500, width=32)
    with torch.no_grad():
        for name in ("hidden", "weight", "bias"):
            if getattr(made, name) is not None:
                getattr(exact, name).copy_(getattr(made, name))
    exact.ids, exact.pull = made.ids, made.pull.double()
    truth = exact.run(full_logprobs, "value", sampling)
    for chunk in (WHOLE, 0):
        got = made.run(token_logprobs, "value", sampling, "value", chunk)
        close(got[:2], want[:2], 1e-5)  # the very logits that the sampler sees
        for mine, plain, true in zip(got[2:], want[2:], truth[2:], strict=True):
            distance = lambda x, true=true: (x.double() - true).norm() / true.norm()  # noqa: E731
            assert distance(mine) < 1.5 * distance(plain)


class Watch(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        out = function(*arguments, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("entropy", ["value", "gradient"])
@pytest.mark.parametrize("kind", ["plain", "scale-bias-softcap", "frozen", "callable"])
def test_no_tensor_grows_with_tokens_times_vocabulary(kind, entropy, monkeypatch):
    vocabulary, width, block = 4096, 16, 2**15
    monkeypatch.setattr(linear_head, "CACHED_ELEMENTS", block)
    for units in (64, 512):
        made = case(kind, torch.float32, units=units, positions=units, vocabulary=vocabulary, width=width)
        options = {"chunk_elements": block, "vocabulary": vocabulary}
        with Watch() as watch:
            made.run(token_logprobs, entropy, Sampling(), entropy, **options)
        assert watch.largest == vocabulary * width or watch.largest <= block
        with Watch() as plain:
            made.run(full_logprobs, entropy, Sampling())
        assert plain.largest == units * vocabulary > max(block, vocabulary * width)


def test_logits_that_fit_are_kept_and_others_are_not():
    def products(chunk):
        counted = []

        class Counting(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
                if function is torch.ops.aten.mm.default:
                    counted.append(1)
                return function(*arguments, **(kwargs or {}))

        made = case("plain", torch.float32)
        with Counting():
            made.run(token_logprobs, "value", Sampling(), "value", chunk)
        return len(counted)

    assert products(CUT) == products(WHOLE) + 1  # the logits, once more


@pytest.mark.parametrize("kind", ["bias", "scale-bias-softcap", "frozen"])
def test_few_logits_go_through_autograd_to_the_same_end(kind, monkeypatch):
    made = case(kind)
    want = made.run(token_logprobs, "gradient", Sampling(), "gradient", vocabulary=VOCABULARY)
    monkeypatch.setattr(likelihood, "SMALL_ELEMENTS", UNITS * VOCABULARY)
    monkeypatch.setattr(LinearHead, "token_logprobs", None)
    close(made.run(token_logprobs, "gradient", Sampling(), "gradient", vocabulary=VOCABULARY), want, 1e-10)


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen3-untied", "gemma2-softcap"])
def test_a_network_hands_over_its_head(family):
    """With the embedding's own gradient, if it is tied."""
    net = network(family)
    assert isinstance(net.head, LinearHead)
    assert (net.head.weight is net.body.get_input_embeddings().weight) == (family != "qwen3-untied")
    ids = torch.arange(12).reshape(2, 6)
    results = []
    for score in (full_logprobs, token_logprobs):
        net.model.zero_grad()
        logprobs, _ = score(net.head, net.hidden(ids).flatten(0, 1), ids.flatten(), Sampling(temperature=0.7))
        logprobs.square().sum().backward()
        results.append([logprobs.detach(), *(p.grad.clone() for p in net.model.parameters())])
    close(results[1], results[0], 1e-10)


def test_adapters_on_the_head_go_through_autograd():
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    net = network("qwen3-untied")
    net = type(net)(peft.get_peft_model(net.model, config).double())
    assert not isinstance(net.head, LinearHead)
    trained = dict(net.named_trainable())
    assert any("lm_head" in name for name in trained)
    ids = torch.arange(12).reshape(2, 6)
    results = []
    for options in ({}, {"chunk_elements": CUT, "vocabulary": VOCABULARY}):
        score = token_logprobs if options else full_logprobs
        net.model.zero_grad()
        logprobs, _ = score(net.head, net.hidden(ids).flatten(0, 1), ids.flatten(), Sampling(), **options)
        logprobs.square().sum().backward()
        results.append([logprobs.detach(), *(p.grad.clone() for p in trained.values())])
    close(results[1], results[0], 1e-10)


def test_adapters_elsewhere_leave_a_frozen_linear_head(monkeypatch):
    """Its backward pass computes no logits."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    net = network()
    net = type(net)(peft.get_peft_model(net.model, config).double())
    assert isinstance(net.head, LinearHead)
    ids = torch.arange(6)
    logprobs, _ = token_logprobs(net.head, net.hidden(ids[None])[0], ids, Sampling(), chunk_elements=0)
    monkeypatch.setattr(linear_head, "_logits", None)
    logprobs.sum().backward()
    assert all(p.grad is not None for _, p in net.named_trainable())


def test_a_head_that_is_more_than_its_weights_is_not_taken_for_linear():
    net = network("qwen3-untied")
    net.output.register_forward_hook(lambda module, inputs, out: out * 2.0)
    hidden = torch.randn(3, 32, dtype=torch.float64)
    assert not isinstance(net.head, LinearHead)
    torch.testing.assert_close(net.head(hidden), 2.0 * hidden @ net.output.weight.T)
    net.output = nn.Sequential(nn.Identity())
    assert not isinstance(net.head, LinearHead)


def _leave_out_a_block(real):
    return lambda *arguments: list(real(*arguments))[:-1]


def _add_twice(real):
    return lambda *arguments: [real(*arguments) for _ in range(2)]


def _forget_the_maximum(real):
    return lambda self, block, weights, fade: real(self, block, weights, torch.ones_like(fade))


def _forget_the_softcap(real):
    return lambda logits, scale, softcap: real(logits, scale, None)


@pytest.mark.parametrize(
    ("kind", "owner", "name", "spoil"),
    [
        ("plain", linear_head, "_blocks", _leave_out_a_block),
        ("plain", linear_head, "_add_product", _add_twice),
        ("frozen", linear_head._Pull, "add", _forget_the_maximum),
        ("softcap", linear_head, "shape_logits", _forget_the_softcap),
    ],
)
def test_planted_defects_are_caught(kind, owner, name, spoil, monkeypatch):
    monkeypatch.setattr(linear_head, "CACHED_ELEMENTS", 5 * 6)
    made = case(kind)
    want = made.run(full_logprobs, "value", Sampling())
    monkeypatch.setattr(owner, name, spoil(getattr(owner, name)))
    got = made.run(token_logprobs, "value", Sampling(), "value", chunk_elements=CUT)
    with pytest.raises(AssertionError):
        close(got, want, 1e-10)
