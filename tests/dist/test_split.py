"""Matrices, or the tokens of rows, in two parts, which two more ranks shard or share: four ranks equal one process."""

import copy

import pytest
import torch
from comparing import assert_close_runs, assert_same_updates, many_ranks
from runs import metrics, settings
from small_models import network
from small_runs import RUNS
from spread import CHECKS

from gspo.dist.config import RanksConfig
from gspo.dist.context_parallel import CausalRows, refuse_unspread
from gspo.dist.ranks import Team
from gspo.dist.tensor_parallel import plan_of
from gspo.policies.attention import Layer
from gspo.training.run import resume, start
from gspo.training.state import checkpoints, load_newest

CASES = ["split, large", "split, large, untied", "split, lora", "split, activations", "tokens", "tokens, lora", "tokens, experts, R2", "both"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Everything that four ranks do: (results by job, their folder)."""
    folder = tmp_path_factory.mktemp("four")
    start(settings(folder / "from one", ("steps", 2), ("ranks.tensor_parallel", 2)))
    jobs = [*CASES, *CHECKS, "run:split, half", "resume:from one"]
    return many_ranks(folder, jobs, 4), folder


@pytest.mark.parametrize("case", CASES)
def test_updates_of_four_ranks_are_those_of_one(done, case):
    assert_same_updates(done[0][case], case)


def test_each_rank_keeps_its_part_alone(done):
    """A quarter; only norms are on more ranks than one."""
    assert done[0]["held"] == pytest.approx([0.25] * 4, rel=0.02)


def test_each_rank_runs_its_part_of_the_tokens(done):
    assert done[0]["ran"] == [([7], (1, 13, 32))] * 4


def test_the_gradient_of_an_input_travels_once(done):
    assert done[0]["travelled"] == [2 * 2 + 1] * 4


@pytest.mark.parametrize("how", ["gathered", "gathered tokens"])
def test_a_rank_answers_alone_while_weights_are_gathered(done, how):
    assert done[0][how] == [True] * 4


def test_a_network_that_answers_otherwise_when_split_is_refused(done):
    said = done[0]["doubted"]
    assert all("qwen3 in parts answers otherwise than whole (logits differ by 1)" in line for line in said)


def test_checkpoints_of_parts_are_read_by_one_process(done, tmp_path):
    folder = done[1] / "split, half"
    assert (checkpoints(folder / "checkpoints")[0] / "weights").is_dir()
    start(settings(tmp_path / "whole", *RUNS["split, half"], ("steps", 4), ("device", "cpu")))
    resume(folder, [("steps", 4)])
    assert_close_runs(tmp_path / "whole", folder)


def test_a_checkpoint_of_one_process_is_read_in_parts(done, tmp_path):
    start(settings(tmp_path / "whole", ("device", "cpu")))
    ours, whole = metrics(done[1] / "from one"), metrics(tmp_path / "whole")
    assert len(ours) == len(whole) and ours[-1] == pytest.approx(whole[-1], rel=1e-4, abs=1e-5)
    assert load_newest(done[1] / "from one" / "checkpoints", print)[0].step == 4


# ---- what cannot be split is refused by name


def planned(family: str, size: int, **changed: object) -> dict[str, str]:
    net = copy.copy(network(family))
    net.config = copy.deepcopy(net.config)
    for name, value in changed.items():
        setattr(net.config, name, value)
    return plan_of(net, size)


LLAMA = {"layers.*.self_attn.q_proj": "colwise", "layers.*.self_attn.o_proj": "rowwise"}


@pytest.mark.parametrize(
    "family, size, changed, line",
    [
        ("qwen3-tied", 4, {}, r"ranks.tensor_parallel = 4 does not divide num_key_value_heads = 2 of qwen3"),
        ("qwen3-tied", 3, {}, r"ranks.tensor_parallel = 3 does not divide num_attention_heads = 4 of qwen3"),
        ("qwen3-moe", 2, {}, r"plan for qwen3_moe splits .* as \w+, which gspo does not"),
        ("gpt2", 2, {}, r"transformers has no tensor-parallel plan for gpt2"),
        ("llama", 2, {"base_model_tp_plan": None}, r"no tensor-parallel plan for llama; use ranks.sharding alone"),
        ("qwen3-tied", 2, {"base_model_tp_plan": LLAMA}, r"does not say how layers.0.self_attn.k_proj is split"),
    ],
)
def test_what_a_plan_does_not_allow_is_said(family, size, changed, line):
    with pytest.raises(ValueError, match=line):
        planned(family, size, **changed)


def test_a_plan_is_followed_where_ranks_divide_all_of_it():
    assert planned("qwen3-tied", 2)["layers.*.self_attn.q_norm"] == "replicated_with_grad_allreduce"


@pytest.mark.parametrize(
    "family, size, split, line",
    [
        ("qwen3-tied", 4, 1, r"ranks.context_parallel = 4 does not divide num_key_value_heads = 2 of qwen3"),
        ("qwen3-tied", 2, 2, r"= 2 times ranks.tensor_parallel = 2 does not divide num_key_value_heads = 2"),
    ],
)
def test_tokens_that_cannot_be_spread_are_said(family, size, split, line):
    with pytest.raises(ValueError, match=line):
        refuse_unspread(network(family), size, split)


def test_tokens_that_meet_outside_of_attention_are_not_spread():
    net = network("llama")
    net.__dict__["refusal"] = "its tokens meet"
    with pytest.raises(ValueError, match="spreads the tokens of llama, but its tokens meet"):
        refuse_unspread(net, 2)


def test_ranks_that_cannot_be_paired_are_refused_before_they_meet():
    line = "tensor_parallel = 2 times ranks.context_parallel = 2 does not divide the 6 ranks of this run"
    with pytest.raises(ValueError, match=line):
        Team(0, 6).open(RanksConfig(tensor_parallel=2, context_parallel=2), "cpu")


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 4])
def test_rows_of_their_own_are_causal(softcap, window):
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, 9, 8, dtype=torch.float64) for heads in (4, 2, 2))
    found = CausalRows().attend(query, key, value, Layer(0, 0.3, softcap, window))
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = query @ key.mT * 0.3
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    distance = torch.arange(9)[:, None] - torch.arange(9)
    unseen = (distance < 0) | (distance >= (window or 9))
    expected = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1) @ value
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)
