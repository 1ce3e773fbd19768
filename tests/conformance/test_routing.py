"""Expert choices: recorded and repeated in every layout, by every sampler; bad records; the load-balancing loss."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import SHAPE, network, ragged_step, step_of
from test_policies import LAYOUTS, WIDE, gradients, scorer
from test_samplers import copying, requests
from transformers import DeepseekV3Config, GptOssConfig, GraniteMoeConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gspo.policies import Network, TokenScorer, TrainedPolicy
from gspo.policies.costs import known_refusal
from gspo.policies.master import AdamW
from gspo.policies.routing import Balance, Pass, Routes, expert_shares, index_dtype
from gspo.policies.trained import scored
from gspo.samplers import InProcess
from gspo.samplers.copied import Copied, copy_of
from gspo.sampling import Sampling
from gspo.training.experts import share_changed
from gspo.training.sequences import pieces_of
from gspo.types import Completion, Turn

FAMILIES = ("qwen3-moe", "mixtral-moe", "olmoe")
LAYERS, EXPERTS, K = 2, 4, 2


def other(config, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.set_experts_implementation("eager")
    return Network(model.eval())


OTHERS = {
    "logits, then softmax": GraniteMoeConfig(
        **{k: v for k, v in SHAPE.items() if k != "head_dim"}, num_local_experts=4, num_experts_per_tok=2
    ),
    "logits with a bias": GptOssConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    ),
    "sigmoids in groups, one dense layer": DeepseekV3Config(
        **{k: v for k, v in SHAPE.items() if k not in ("head_dim", "num_key_value_heads")}, num_key_value_heads=4,
        n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1,
        moe_intermediate_size=16, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=8,
    ),
}  # fmt: skip


def drawn(step, seed=0, layers=LAYERS, experts=EXPERTS, k=K):
    """Records that are a function of the tokens up to each one: what sequences share has one route."""
    records = []
    for prompt, completion in zip(step.payload.prompt, step.payload.completion, strict=True):
        tokens = prompt + completion[:-1]
        rows = []
        for t in range(len(tokens)):
            make = np.random.default_rng([seed, *tokens[: t + 1]])
            rows.append([make.permutation(experts)[:k] for _ in range(layers)])
        records.append(Routes.of(np.array(rows).reshape(len(tokens), layers, k), experts))
    return replace(step, payload=step.payload.with_replay(tuple(records)))


def trained_gradients(net, made, step):
    policy = TrainedPolicy(made, AdamW())
    weight = WIDE.weights(step, WIDE.counts(step))
    found = {}
    named = gradients(net, lambda: found.update(result=policy.forward_backward(step, [weight], [WIDE])))
    return found["result"], named


@pytest.mark.parametrize("family", FAMILIES)
def test_the_routers_are_found(family):
    routers = network(family, dtype=torch.float32).routers
    assert (len(routers.modules), routers.num_experts, routers.top_k) == (LAYERS, EXPERTS, K)


@pytest.mark.parametrize("routing", ["R2", "R3"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_repeating_its_own_choices_changes_no_bit(family, layout, routing):
    net = network(family, dtype=torch.float32)
    free = scorer(net, layout, micro_batch_tokens=40)
    step = ragged_step(2, dtype=torch.float32)
    scores = free.logprobs(step)
    step = replace(step, payload=step.payload.with_replay(scores.replay))
    one, want = trained_gradients(net, free, step)
    two, got = trained_gradients(net, replace(free, routing=routing), step)
    assert torch.equal(one.logprobs, two.logprobs) and torch.equal(one.logprobs, scores.logprobs)
    assert one.replay == two.replay == scores.replay
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_told_choices_are_the_same_in_every_layout(family, layout):
    """Against padded rows of one sequence each: value, and every parameter's gradient, the gates' among them."""
    net = network(family)
    step = drawn(ragged_step(1))
    result, got = trained_gradients(net, scorer(net, layout, routing="R3"), step)
    alone, want = trained_gradients(net, scorer(net, ("padded", 0), routing="R3", micro_batch_tokens=1), step)
    torch.testing.assert_close(result.logprobs, alone.logprobs, rtol=0, atol=1e-5)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-6 * max(1.0, gradient.abs().max().item()))
    assert all(got[f"model.layers.{i}.mlp.gate.weight"].any() for i in range(LAYERS))
    free = scorer(net, layout).logprobs(step).logprobs
    assert (free - result.logprobs).abs().max() > 1e-3  # the experts matter


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_routers(kind):
    net = other(OTHERS[kind])
    layers, experts = len(net.routers.modules), net.routers.num_experts
    assert layers == (1 if "dense" in kind else 2)
    step = ragged_step(1, dtype=torch.float32)
    free = TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=10**6)
    scores = free.logprobs(step)
    own = replace(step, payload=step.payload.with_replay(scores.replay))
    assert torch.equal(scored(replace(free, routing="R3"), own).logprobs, scores.logprobs)
    told = drawn(step, layers=layers, experts=experts)
    assert not torch.equal(scored(replace(free, routing="R3"), told).logprobs, scores.logprobs)
    p = net.routers.probabilities(torch.rand(3, experts) if net.routers.are_positive else torch.randn(3, experts))
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(3))


@pytest.mark.parametrize("routing", ["free", "R3"])
@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_activations_computed_again_go_to_the_same_experts(coef, routing):
    """The same gradients to the bit, and each router runs once more."""
    found = []
    for is_on in (False, True):
        net = network("qwen3-moe", dtype=torch.float32)
        net.checkpoints_activations = is_on
        step = drawn(ragged_step(2, dtype=torch.float32))
        made = scorer(net, ("shared_prefix", 0), routing=routing, balance_coef=coef)
        gate = net.routers.modules[0]
        calls = []
        gate.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found.append(trained_gradients(net, made, step)[1])
        assert len(calls) == 1 + is_on
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_layer_that_runs_again_is_told_what_it_chose():
    net = network("qwen3-moe", dtype=torch.float32)
    routes = net.new_pass()
    ids = torch.arange(6)[None]
    first = net.hidden(ids, routes=routes)
    with torch.no_grad():
        for router in net.routers.modules:
            router.weight.neg_()  # now it would choose the others
    with routes.again():
        again = net.hidden(ids)
    assert not torch.equal(first, again)  # the gates' weights are those of now
    changed = net.new_pass()
    net.hidden(ids, routes=changed)
    assert not torch.equal(torch.stack(changed.used), torch.stack(routes.used))
    told = Pass(routers=net.routers, forced=routes.routes().long())
    assert torch.equal(net.hidden(ids, routes=told), again)


def test_every_record_is_used_once():
    net = network("qwen3-moe", dtype=torch.float32)
    routes, ids = net.new_pass(), torch.arange(6)[None]
    net.hidden(ids, routes=routes)
    with pytest.raises(AssertionError, match="twice"):
        net.hidden(ids, routes=routes)
    with pytest.raises(AssertionError, match="0 routers of 2"), net.routers.through(net.new_pass()):
        pass
    assert not any(router._forward_hooks for router in net.routers.modules)


# ---- records


def test_the_index_is_as_small_as_it_may_be_and_never_overflows():
    assert [index_dtype(n).name for n in (2, 256, 257, 65_536, 65_537)] == [
        "uint8", "uint8", "uint16", "uint16", "uint32"
    ]  # fmt: skip
    for experts in (256, 257, 65_537):
        chosen = np.array([[[0, experts - 1]]])
        assert Routes.of(chosen, experts).experts.tolist() == chosen.tolist()


def test_more_experts_than_a_byte_counts():
    shape = {**SHAPE, "num_hidden_layers": 1}
    from transformers import Qwen3MoeConfig

    net = other(Qwen3MoeConfig(**shape, num_experts=300, num_experts_per_tok=3, moe_intermediate_size=4))
    step = ragged_step(3, dtype=torch.float32)
    scores = scorer(net, ("shared_prefix", 0)).logprobs(step)
    assert {record.dtype for record in scores.replay} == {"uint16"}
    assert max(int(record.experts.max()) for record in scores.replay) > 255
    sampled = InProcess(net, [1], 0).sample(requests(Sampling(max_completion_tokens=4), n=2))
    assert max(int(c.replay.experts.max()) for group in sampled for c in group) > 255


def test_records_of_turns_are_joined():
    """What a completion was sampled behind stays; the reply and the next completion come from the next turn."""
    record = lambda tokens, value: Routes.of(np.full((tokens, 1, 1), value), 4)  # noqa: E731
    said = lambda ids, tokens, value: Completion(  # noqa: E731
        ids=ids, logprobs=(0.0,) * len(ids), policy_version=0, finish_reason="stop", replay=record(tokens, value)
    )
    turns = [
        Turn(prompt_ids=(5, 6), completion=said((7, 8), 3, 0)),
        Turn(prompt_ids=(5, 6, 7, 8, 9), completion=said((3, 3), 6, 1)),
    ]
    (piece,) = pieces_of(turns)
    assert piece.replay.experts.ravel().tolist() == [0, 0, 0, 1, 1, 1]
    assert len(piece.prompt_ids) + len(piece.ids) - 1 == piece.replay.shape[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda r: Routes.of(r.experts[:, :1], 4), "1 layers of experts and not 2"),
        (lambda r: Routes.of(r.experts[:, :, :1], 4), "1 experts per token and not 2"),
        (lambda r: Routes.of(r.experts[:-1], 4), "tokens and not"),
        (lambda r: Routes.of(r.experts, 8), "8 experts and not 4"),
        (lambda r: Routes.of(r.experts + 3, 4), "names expert"),
        (lambda r: None, "without a record"),
    ],
)
def test_a_record_of_something_else_is_refused(wrong, said):
    net = network("qwen3-moe", dtype=torch.float32)
    step = drawn(ragged_step(1, dtype=torch.float32))
    records = step.payload.replay
    step = replace(step, payload=step.payload.with_replay((*records[:-1], wrong(records[-1]))))
    with pytest.raises(ValueError, match=said) as error:
        scorer(net, ("padded", 0), routing="R3").logprobs(step)
    assert "\n" not in str(error.value)


def sorts(self, hidden):
    """A router that chooses without `torch.topk`."""
    logits = torch.nn.functional.linear(hidden.reshape(-1, self.hidden_dim), self.weight)
    scores, indices = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    return logits, scores[:, : self.top_k], indices[:, : self.top_k]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_routing_is_for_experts_that_can_be_asked():
    dense, compiled = network("llama"), Network(network("qwen3-moe", dtype=torch.float32).model, is_compiled=True)
    unknown = network("mixtral-moe", dtype=torch.float32)
    for layer in unknown.body.layers:
        layer.mlp.gate.forward = sorts.__get__(layer.mlp.gate)
    for net, said in ((dense, "llama has no experts"), (compiled, "compile"), (unknown, "mixtral choose in a way")):
        for settings in ({"routing": "R2"}, {"routing": "R3"}, {"balance_coef": 0.1}):
            with pytest.raises(ValueError, match=f"mixture of experts: .*{said}"):
                TokenScorer(network=net, scoring=Sampling(), micro_batch_tokens=1, **settings)
    assert scorer(unknown, ("padded", 0)).logprobs(ragged_step(1, dtype=torch.float32)).replay is None


def test_a_capacity_is_refused_where_rows_are_shared_and_top_k_is_not():
    config = copy.deepcopy(network("mixtral-moe").config)
    assert not known_refusal(config) and not network("mixtral-moe", dtype=torch.float32).refusal
    config.expert_capacity = 8
    assert "capacity" in known_refusal(config)
    net = network("qwen3-moe", dtype=torch.float32)
    net.config = copy.deepcopy(net.config)
    net.config.moe_capacity_factor = 1.25
    with pytest.raises(ValueError, match=r"capacity.*padded"):
        scorer(net, ("shared_prefix", 0))


# ---- the sampler


def rows_of(wave, groups):
    return [(i, r.prompt_ids, c.ids) for i, (r, group) in enumerate(zip(wave, groups, strict=True)) for c in group]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_rows", [512, 5, 3])
@pytest.mark.parametrize("make", [lambda net, rows: InProcess(net, [1], 0, rows), copying])
def test_the_sampler_records_what_scoring_finds(make, max_rows, family):
    """Rows leave and join, ragged prompts, completions of one token: each token's experts are its own."""
    net = network(family)
    wave = requests(Sampling(max_completion_tokens=9), n=4)
    groups = make(net, max_rows).sample(wave)
    step = step_of(rows_of(wave, groups))
    found = scorer(net, ("padded", 0)).logprobs(step).replay
    recorded = tuple(c.replay for group in groups for c in group)
    assert recorded == found
    lengths = {len(c.ids) for group in groups for c in group}
    assert min(lengths) < max(lengths) and recorded[0].dtype == "uint8"


def test_training_repeats_the_sampler_in_half_precision():
    """The copy follows the weights; its routes are its own, and R3 hands them to the trainer."""
    net = network("qwen3-moe", dtype=torch.float32)
    half = Network(copy_of(net.model, torch.bfloat16))
    sampler = Copied(InProcess(half, [1], 0), half.model)
    wave = requests(Sampling(max_completion_tokens=24), n=16)
    groups = sampler.sample(wave)
    step = step_of(rows_of(wave, groups), dtype=torch.float32)
    recorded = tuple(c.replay for group in groups for c in group)
    step = replace(step, payload=step.payload.with_replay(recorded))
    free = scorer(net, ("padded", 0))
    own = free.logprobs(step).replay
    differ = [share_changed(a.experts, b.experts).mean() for a, b in zip(recorded, own, strict=True)]
    assert 0 < np.mean(differ) < 0.2
    said = torch.zeros(step.mask.shape)
    for row, c in enumerate(c for group in groups for c in group):
        said[row, : len(c.logprobs)] = torch.tensor(c.logprobs)
    gap = lambda made: (made.logprobs(step).logprobs - said)[step.mask].square().mean()  # noqa: E731
    assert gap(replace(free, routing="R3")) < gap(free)  # what is left is rounding alone

    with torch.no_grad():
        for p in net.model.parameters():
            p.mul_(0.9)
    assert sampler.sample(wave) == groups  # the copy stays as it is until it is told
    sampler.sync_weights(SimpleNamespace(network=net), 5)
    moved = sampler.sample(wave)
    assert [[c.ids for c in group] for group in moved] != [[c.ids for c in group] for group in groups]
    assert {c.policy_version for group in moved for c in group} == {5}
    assert next(half.model.parameters()).dtype == torch.bfloat16
    ours, copied = (dict(model.named_buffers()) for model in (net.model, half.model))
    assert all(copied[name].dtype == ours[name].dtype for name in ours)


# ---- the load-balancing loss


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [10**6, 25])
@pytest.mark.parametrize("recorded", [True, False])
def test_micro_batches_and_layouts_add_up_to_one_balance(recorded, budget, layout):
    """Against the formula on the routers' probabilities, sequence by sequence."""
    net = network("qwen3-moe")
    step = ragged_step(1)
    step = drawn(step) if recorded else step
    made = scorer(net, layout, micro_batch_tokens=budget)
    plain, without = trained_gradients(net, made, step)
    balanced, got = trained_gradients(net, replace(made, balance_coef=0.5), step)
    assert plain.loss == balanced.loss

    def by_hand():
        records = step.payload.replay or made.logprobs(step).replay
        shares, sums, count = expert_shares(records), [0.0, 0.0], 0
        for prompt, completion in zip(step.payload.prompt, step.payload.completion, strict=True):
            routes = Pass(routers=net.routers, keeps_probabilities=True)
            net.hidden(torch.tensor([prompt + completion[:-1]]), routes=routes)
            sums = [a + p.sum(dim=0) for a, p in zip(sums, routes.probabilities, strict=True)]
            count += len(prompt) + len(completion) - 1
        parts = [EXPERTS * (torch.from_numpy(f) * p / count).sum() for f, p in zip(shares, sums, strict=True)]
        (0.5 * sum(parts) / LAYERS).backward()

    alone = gradients(net, by_hand)
    assert any(gradient.any() for gradient in alone.values())
    for name, gradient in without.items():
        want = gradient + alone.get(name, 0.0)
        torch.testing.assert_close(got[name], want, rtol=0, atol=2e-6 * max(1.0, want.abs().max().item()))


def test_even_experts_cost_the_coefficient_and_one_expert_many_times_it():
    even, one = (np.full((1, EXPERTS), 1 / EXPERTS), np.eye(EXPERTS)[:1])
    for shares, mass, want in ((even, even, 1.0), (one, one, EXPERTS), (one, even, 1.0)):
        routes = Pass(routers=None)
        routes.probabilities.append(torch.from_numpy(mass).repeat(3, 1))
        loss = Balance(0.1, shares, 3).loss(routes, [np.arange(2), np.array([2])])
        assert loss.item() == pytest.approx(0.1 * want)


def test_balance_spreads_the_experts():
    """And with its sign turned it gathers them."""
    net = network("qwen3-moe", dtype=torch.float32)
    step = ragged_step(3, groups=8, dtype=torch.float32)
    step = replace(step, advantage=torch.zeros_like(step.advantage))
    uneven = []
    for coef in (-1.0, 1.0):
        policy = TrainedPolicy(scorer(net, ("shared_prefix", 0), balance_coef=coef), AdamW())
        for _ in range(20):
            policy.forward_backward(step, [WIDE.weights(step, WIDE.counts(step))], [WIDE])
            policy.optim_step(1e-2)
        shares = expert_shares(policy.logprobs(step).replay)
        uneven.append(float(np.square(shares).sum(axis=1).mean() * EXPERTS))
    assert uneven[1] < 1.15 < 1.5 < uneven[0]


def test_shares_of_changes_by_hand():
    before = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    now = np.array([[[1, 0], [2, 0]], [[2, 3], [3, 2]]])
    assert share_changed(before, now).tolist() == [[0.0, 0.5], [1.0, 0.0]]
