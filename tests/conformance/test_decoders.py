"""The laws of a decoder: each row's logits are the model's, whoever shares its prompt, joins or leaves."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_models import SHAPE, VOCABULARY, network
from test_samplers import FAMILIES
from transformers import GptOssConfig, Qwen3NextConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gspo.policies import Network
from gspo.samplers import InProcess
from gspo.samplers.decoding import CopiedCache, SharedPrompts, can_share_prompts
from gspo.samplers.kv_store import Block, closed_up
from gspo.samplers.shared_attention import Seats

DECODERS = {
    "shared": lambda net: SharedPrompts(net, longest_prompt=41, limit=30),
    "copied": lambda net: CopiedCache(net, pad_id=0),
}
LENGTHS = (41, 1, 9, 17, 3, 9)  # of prompts: under and over the number of keys where attention changes its kernel


def prompts():
    draw = random.Random(3)
    return {p: tuple(draw.randrange(VOCABULARY) for _ in range(length)) for p, length in enumerate(LENGTHS)}


def assert_logits(net, histories, logits):
    for ids, row in zip(histories, logits, strict=True):
        expected = net.head(net.hidden(torch.tensor([ids]))[:, -1])[0]
        # transformers' eager attention, which knows the softcap, computes its softmax in float32 whatever the model's.
        is_eager = net.config._attn_implementation == "eager"
        torch.testing.assert_close(row, expected, rtol=0, atol=2e-5 if is_eager else 1e-9)


@torch.no_grad()
def drive(net, decoder, counts, joining, steps=22, seed=0):
    """Rows of prompts with these counts; some leave, and where the decoder allows others join. All logits checked."""
    draw = random.Random(seed)
    table = prompts()
    rows = [(p, table[p]) for p, count in enumerate(counts) for _ in range(count)]
    histories = [list(ids) for _, ids in rows]
    logits = decoder.admit(rows)
    joining = [(p, table[p]) for p in joining] if decoder.admits_midway else []
    for step in range(steps):
        assert_logits(net, histories, logits)
        if step % 4 == 2:
            kept = np.array([draw.random() < 0.75 for _ in histories])
            kept[draw.randrange(len(kept))] = True
            order = closed_up(kept)
            decoder.keep(order)
            histories = [histories[i] for i in order]
        token = [draw.randrange(VOCABULARY) for _ in histories]
        for ids, one in zip(histories, token, strict=True):
            ids.append(one)
        logits = decoder.advance(torch.tensor(token))
        if step % 3 == 1 and joining:
            some, joining = joining[:3], joining[3:]
            histories += [list(ids) for _, ids in some]
            logits = torch.cat([logits, decoder.admit(some)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_the_models(name, family):
    """Ragged prompts, prompts of one token, ids equal to pad and stop, groups admitted in parts."""
    net = network(family, torch.float32 if "cap" in family else torch.float64)
    drive(net, DECODERS[name](net), counts=(3, 2, 1, 4), joining=(3, 3, 4, 4, 4, 4, 5))


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_one_group_of_even_prompts(name):
    """The plain case, in which nothing is gathered or masked."""
    net = network("qwen2")
    drive(net, DECODERS[name](net), counts=(8,), joining=(), steps=9)


def test_growing_past_the_first_room():
    net = network("llama")
    decoder = SharedPrompts(net, longest_prompt=41, limit=90)
    drive(net, decoder, counts=(2, 2), joining=(2,), steps=80)
    assert decoder.own.keys(0).shape[2] == 90


def test_prompts_go_when_their_rows_have():
    net = network()
    table = prompts()
    decoder = SharedPrompts(net, 41, 9)
    decoder.admit([(p, table[p]) for p in (0, 0, 1, 1, 2)])
    decoder.keep(np.array([3, 2]))
    assert sorted(decoder.numbers) == [1, 2], "prompt 2 came last: more of its rows may follow"
    decoder.admit([(2, table[2]), (3, table[3])])
    assert sorted(decoder.numbers) == [1, 2, 3]


class Counted:
    """A network that counts the tokens given to its layers and the rows given to its head."""

    def __init__(self, net):
        self.net, self.tokens, self.rows = net, [], []

    def __getattr__(self, name):
        return getattr(self.net, name)

    def hidden(self, ids, positions=None, **given):
        self.tokens.append(ids.numel())
        return self.net.hidden(ids, positions, **given)

    def head(self, hidden):
        self.rows.append(len(hidden))
        return self.net.head(hidden)


@torch.no_grad()
def test_each_prompt_is_prefilled_once_and_without_padding():
    """Its head is applied at its last position alone."""
    net, table = Counted(network()), prompts()
    decoder = SharedPrompts(net, 41, 9)
    decoder.admit([(p, table[p]) for p in (0, 0, 0, 1, 2, 2)])
    decoder.admit([(2, table[2])] * 3)
    assert (net.tokens, net.rows) == ([41 + 1 + 9], [3])


def test_rows_close_up_by_moving_few():
    kept = np.array([True, False, True, False, True, True])
    assert closed_up(kept).tolist() == [0, 4, 2, 5] or closed_up(kept).tolist() == [0, 5, 2, 4]
    draw = np.random.default_rng(0)
    for _ in range(50):
        kept = draw.random(9) < draw.random()
        order = closed_up(kept)
        assert sorted(order) == np.flatnonzero(kept).tolist()
        assert all(order[i] == i for i in range(len(order)) if kept[i])


def test_a_block_keeps_what_it_is_told():
    block = Block()
    content = [torch.randn(4, 2, 3, 5), torch.randn(4, 1, 3, 6)]  # heads and width differ
    block.reserve(4, 3, 100, like=content)
    block.put(0, content)
    block.reserve(6, 70, 100, like=content)
    block.keep(np.array([0, 3, 2]))
    for buffer, given in zip(block.buffers, content, strict=True):
        assert torch.equal(buffer[:3, :, :3], given[[0, 3, 2]]) and buffer.shape[2] >= 70


def test_seats_go_there_and_back():
    draw = np.random.default_rng(1)
    for slots in (np.array([0, 0, 1, 1]), np.array([2, 0, 2, 2, 0]), draw.integers(0, 4, 11)):
        seats = Seats(slots=slots, device=torch.device("cpu"))
        rows = torch.arange(len(slots))
        seated = seats.seated(rows)
        assert torch.equal(seats.by_row(seated), rows)
        for slot, row in zip(slots, rows.tolist(), strict=True):
            assert row in seated[slot]


SINKS = GptOssConfig(
    **SHAPE,
    num_local_experts=2,
    num_experts_per_tok=1,
    layer_types=["sliding_attention", "full_attention"],
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)
LINEAR = Qwen3NextConfig(
    **SHAPE,
    num_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)


@pytest.mark.parametrize("config", (SINKS, LINEAR), ids=("attention sinks", "linear attention"))
def test_models_with_other_layers_are_left_to_transformers(config):
    net = Network(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())
    assert not can_share_prompts(net)
    assert not InProcess(net, [1], 0)._shares_prompts


def test_a_kind_of_layer_that_a_short_probe_would_not_tell_apart():
    net = network("llama")
    net.config = deepcopy(net.config)
    net.config.layer_types = ["chunked_attention", "full_attention"]
    assert not can_share_prompts(net)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_models_share_prompts(family):
    assert can_share_prompts(network(family)) and can_share_prompts(network(family, dtype=torch.bfloat16))
