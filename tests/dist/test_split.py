"""Matrices split over two ranks, whose parts two more shard: four ranks equal one process."""

import copy

import pytest
from comparing import assert_close_runs, assert_same_updates, many_ranks
from runs import metrics, settings
from small_models import network
from small_runs import RUNS

from gspo.dist.config import RanksConfig
from gspo.dist.ranks import Team
from gspo.dist.tensor_parallel import plan_of
from gspo.training.run import resume, start
from gspo.training.state import checkpoints, load_newest

CASES = ["split, large", "split, large, untied", "split, lora", "split, activations"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Everything that four ranks do: (results by job, their folder)."""
    folder = tmp_path_factory.mktemp("four")
    start(settings(folder / "from one", ("steps", 2), ("ranks.tensor_parallel", 2)))
    jobs = [*CASES, "held", "gathered", "doubted", "run:split, half", "resume:from one"]
    return many_ranks(folder, jobs, 4), folder


@pytest.mark.parametrize("case", CASES)
def test_updates_of_four_ranks_are_those_of_one(done, case):
    assert_same_updates(done[0][case], case)


def test_each_rank_keeps_its_part_alone(done):
    """A quarter; only norms are on more ranks than one."""
    assert done[0]["held"] == pytest.approx([0.25] * 4, rel=0.02)


def test_a_rank_answers_alone_while_weights_are_gathered(done):
    assert done[0]["gathered"] == [True] * 4


def test_a_network_that_answers_otherwise_when_split_is_refused(done):
    said = done[0]["doubted"]
    assert all("qwen3 split by transformers' plan answers otherwise than whole" in line for line in said)


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


def test_ranks_that_cannot_be_paired_are_refused_before_they_meet():
    line = "ranks.tensor_parallel = 2 does not divide the 3 ranks of this run"
    with pytest.raises(ValueError, match=line):
        Team(0, 3).open(RanksConfig(tensor_parallel=2), "cpu")
