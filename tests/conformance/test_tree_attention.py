"""The ways to attend to packed tokens give one answer, value and gradient."""

import random

import pytest
import torch

from gspo.policies.attention import Layer
from gspo.policies.prefixes import pack
from gspo.policies.tree_attention import Blocks, FlexRows, MaskedRows, blocks_of

HEADS, KEYS, WIDTH = 6, 2, 8
WAYS = [(None, None), (2.0, None), (None, 4), (2.0, 4)]


def packed_tokens(seed=0):
    draw = random.Random(seed)
    ids = lambda n: tuple(draw.randrange(3) for _ in range(n))  # noqa: E731
    prompts = [prompt for n in (1, 40, 20) for prompt in [ids(n)] * 4]
    return pack(prompts, [ids(draw.randrange(12)) for _ in prompts], 1)


def tensors(tokens, dtype, seed=0):
    make = torch.Generator().manual_seed(seed)
    sizes = [(1, HEADS, tokens, WIDTH), (1, KEYS, tokens, WIDTH), (1, KEYS, tokens, WIDTH), (1, tokens, HEADS, WIDTH)]
    return [torch.randn(size, generator=make, dtype=dtype) for size in sizes]


def by_hand(packed, query, key, value, scale, softcap, window):
    """Query by query over the keys it sees."""
    out = torch.zeros(1, query.shape[2], HEADS, WIDTH, dtype=query.dtype)
    for where in packed.where:
        for depth, q in enumerate(where.tolist()):
            keys = where[max(0, depth + 1 - window) if window else 0 : depth + 1]
            for h in range(HEADS):
                k = h * KEYS // HEADS
                scores = key[0, k, keys] @ query[0, h, q] * scale
                if softcap:
                    scores = torch.tanh(scores / softcap) * softcap
                out[0, q, h] = scores.softmax(dim=0) @ value[0, k, keys]
    return out


def rows(kind, packed):
    return kind(torch.from_numpy(packed.end)[None], torch.from_numpy(packed.positions)[None])


def blocks(packed):
    made = Blocks(packed.end, packed.positions)
    made.blocks = blocks_of(packed.end, halve_above=4)
    return made


def run(attention, inputs, pull, softcap, window):
    leaves = [x.clone().requires_grad_(True) for x in inputs]
    out = attention.attend(*leaves, Layer(0, 0.3, softcap, window))
    (out * pull).sum().backward()
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize(("softcap", "window"), WAYS)
@pytest.mark.parametrize("make", [lambda p: rows(MaskedRows, p), blocks], ids=["masked", "blocks"])
def test_equal_to_each_query_by_hand(make, softcap, window):
    packed = packed_tokens()
    *inputs, pull = tensors(len(packed), torch.float64)
    got = run(make(packed), inputs, pull, softcap, window)
    leaves = [x.clone().requires_grad_(True) for x in inputs]
    want = by_hand(packed, *leaves, 0.3, softcap, window)
    (want * pull).sum().backward()
    for ours, theirs in zip(got, [want.detach(), *(x.grad for x in leaves)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision_is_near(dtype, close):
    packed = packed_tokens(1)
    *inputs, pull = tensors(len(packed), torch.float64)
    exact = run(rows(MaskedRows, packed), inputs, pull, None, None)
    for attention in (rows(MaskedRows, packed), blocks(packed)):
        low = run(attention, [x.to(dtype) for x in inputs], pull.to(dtype), None, None)
        for ours, theirs in zip(low, exact, strict=True):
            assert ours.dtype == dtype
            assert (ours.double() - theirs).abs().max() < close * theirs.abs().max()


@pytest.mark.filterwarnings("ignore::UserWarning")  # it would rather be compiled
@pytest.mark.parametrize(("softcap", "window"), WAYS)
def test_flex_attention_forward_is_the_same(softcap, window):
    """Its backward pass runs on a GPU only: tests/gpu."""
    packed = packed_tokens(2)
    *inputs, _ = tensors(len(packed), torch.float32)
    layer = Layer(0, 0.3, softcap, window)
    with torch.no_grad():
        got = rows(FlexRows, packed).attend(*inputs, layer)
        want = rows(MaskedRows, packed).attend(*inputs, layer)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_long_causal_blocks_are_halved():
    packed = pack([tuple(range(1000))], [()], None)
    made = blocks_of(packed.end)
    assert all(block.q_stop - block.q <= 256 for block in made if block.is_causal)
    assert sum(block.pairs for block in made) < 0.7 * 1000**2
