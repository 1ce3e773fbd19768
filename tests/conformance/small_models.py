"""Small random models of several families, and steps over their tokens."""

import copy
import random
from dataclasses import replace

import torch
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gspo.functional import _step
from gspo.policies import Network, Payload

VOCABULARY = 29
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
FAMILIES = {
    "qwen3-tied": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "qwen3-untied": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**{k: v for k, v in SHAPE.items() if k != "head_dim"}, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE),
    "gemma2-softcap": Gemma2Config(
        **SHAPE,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=None,
        query_pre_attn_scalar=8,
        layer_types=["full_attention"] * 2,
    ),
}
OTHERS = {
    "gemma2-capped-sliding": Gemma2Config(
        **SHAPE,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "qwen3-even-tied": Qwen3Config(**{**SHAPE, "vocab_size": 32}, tie_word_embeddings=True),
    "qwen3-even-untied": Qwen3Config(**{**SHAPE, "vocab_size": 32}, tie_word_embeddings=False),
    "qwen3-even-wide": Qwen3Config(**{**SHAPE, "vocab_size": 32, "num_key_value_heads": 4}, tie_word_embeddings=True),
    "olmo2": Olmo2Config(**{k: v for k, v in SHAPE.items() if k != "head_dim"}),
    "mistral-sliding": MistralConfig(**SHAPE, sliding_window=4),
    "qwen3-moe": Qwen3MoeConfig(
        **SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    ),
    "mixtral-moe": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": OlmoeConfig(
        **{k: v for k, v in SHAPE.items() if k != "head_dim"}, num_experts=4, num_experts_per_tok=2, clip_qkv=None
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=1
    ),
}
"""Slower or rarer ones, for the layouts."""


def network(family: str = "qwen3-tied", dtype: torch.dtype = torch.float64, seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attention = "eager" if "cap" in family else "sdpa"  # sdpa has no softcap
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy({**FAMILIES, **OTHERS}[family]), attn_implementation=attention, dtype=dtype
        )
        with torch.no_grad():  # away from the near-uniform start, so that wrong positions show
            for p in model.parameters():
                p.mul_(3.0) if p.ndim > 1 else p
    if "moe" in family:
        model.set_experts_implementation("eager")  # the grouped product has no float64
    return Network(model.eval())


def ragged_step(seed: int = 0, groups: int = 4, dtype: torch.dtype = torch.float64):
    """Groups of 1-5 completions of 1-6 tokens behind prompts of 1-7 tokens, shuffled; pad id 0 occurs as a token."""
    draw = random.Random(seed)
    rows = []
    for g in range(groups):
        prompt = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 8)))
        for _ in range(draw.randrange(1, 6)):
            rows.append((g, prompt, tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 7)))))
    draw.shuffle(rows)
    return step_of(rows, seed, dtype)


def step_of(rows, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A step of (group, prompt, completion) rows; some units are masked out."""
    width = max(len(c) for _, _, c in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (_, _, completion) in enumerate(rows):
        mask[i, : len(completion)] = True
    make = torch.Generator().manual_seed(seed)
    mask &= torch.rand(mask.shape, generator=make) > 0.1
    step = _step(
        mask,
        torch.randn(len(rows), generator=make, dtype=dtype),
        torch.randn(mask.shape, generator=make, dtype=dtype) * 0.1 - 3.3,
        torch.tensor([g for g, _, _ in rows]),
        None,
        None,
        None,
        None,
    )
    return replace(step, payload=Payload(tuple(p for _, p, _ in rows), tuple(c for _, _, c in rows)))
