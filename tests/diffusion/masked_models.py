"""Small masked and causal models for the tests, and steps over their tokens."""

import random
from dataclasses import replace

import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from gspo.functional import _step
from gspo.policies import Payload
from gspo.policies.diffusion import ElboScorer
from gspo.policies.diffusion_network import DiffusionNetwork
from gspo.policies.masks import Elbo

VOCABULARY, MASK, STOP = 13, 12, 1


def bert(dtype=torch.float64, seed=0):
    shape = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5,  # far from uniform, so that wrong positions show
    )
    return seeded(lambda: BertForMaskedLM(shape), dtype, seed)


def modern_bert(dtype=torch.float64, seed=0):
    """Another family: rotary positions, some layers that see few neighbours, and no token types."""
    shape = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        local_attention=6,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=STOP,
        cls_token_id=None,
        sep_token_id=None,
        initializer_range=0.5,
    )
    return seeded(lambda: ModernBertForMaskedLM(shape), dtype, seed)


def seeded(make, dtype, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype).eval()


def network(dtype=torch.float64, make=bert, logit_shift=0):
    return DiffusionNetwork(make(dtype), MASK, logit_shift)


def scorer(net=None, **settings):
    settings = {"canvas": 6, "masking": Elbo(), "micro_batch_tokens": 10**6, **settings}
    return ElboScorer(network=net or network(), **settings)


def step_of(rows, *, mask=None, draw=(0, 1, 0, 0), dtype=torch.float64, seed=0):
    """A step of (group, prompt, completion) rows."""
    width = max(len(completion) for *_, completion in rows)
    whole = torch.tensor([[u < len(completion) for u in range(width)] for *_, completion in rows])
    make = torch.Generator().manual_seed(seed)
    step = _step(
        whole if mask is None else whole & mask,
        torch.randn(len(rows), generator=make, dtype=dtype),
        torch.randn(whole.shape, generator=make, dtype=dtype) * 0.1 - 3.0,
        torch.tensor([group for group, *_ in rows]),
        None,
        None,
        None,
        None,
    )
    payload = Payload(tuple(prompt for _, prompt, _ in rows), tuple(c for *_, c in rows)).with_draw(*draw)
    return replace(step, payload=payload, rollout=torch.arange(len(rows)))


def ragged_step(seed=0, dtype=torch.float64):
    """Groups of 1-4 completions of 1-6 tokens behind prompts of 1-5, shuffled; a few units are given, not chosen."""
    draw = random.Random(seed)
    rows = []
    for group in range(5):
        prompt = tuple(draw.randrange(VOCABULARY - 1) for _ in range(draw.randrange(1, 6)))
        for _ in range(draw.randrange(1, 5)):
            rows.append((group, prompt, tuple(draw.randrange(VOCABULARY - 1) for _ in range(draw.randrange(1, 7)))))
    draw.shuffle(rows)
    width = max(len(completion) for *_, completion in rows)
    mask = torch.rand(len(rows), width, generator=torch.Generator().manual_seed(seed)) > 0.1
    return step_of(rows, mask=mask, dtype=dtype, seed=seed)
