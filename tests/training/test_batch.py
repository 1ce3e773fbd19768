"""From groups to the rows of optimizer updates."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gspo
from gspo.advantages import GroupStd
from gspo.models import TinyConfig, tiny_model
from gspo.policies import Network, TrainedPolicy
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.master import AdamW
from gspo.sampling import Sampling
from gspo.training.batch import MiniBatch, advantage_input, assemble, flatten, mini_batches, with_old_logprobs
from gspo.training.update import live_rows, update
from gspo.types import Completion, Group, Rollout, Turn

NAN = math.nan


def group(number: int, rewards: tuple[float, ...], cut: tuple[int, ...] = ()) -> Group:
    """Rollouts of 1, 2, 3, ... tokens behind a prompt of two; those of `cut` hit the token limit."""
    rollouts = []
    for i, reward in enumerate(rewards):
        completion = Completion(
            ids=tuple(2 + (number + i + t) % 9 for t in range(i + 1)),
            logprobs=tuple(-0.5 - 0.1 * t for t in range(i + 1)),
            policy_version=0,
            finish_reason="length" if i in cut else "stop",
        )
        rollouts.append(
            Rollout(
                group_id=number,
                index=i,
                turns=(Turn(prompt_ids=(3, 4 + number), completion=completion),),
                text="",
                rewards=(reward,),
                statuses=("ok",),
                reward=reward,
            )
        )
    return Group(prompt_id=number, prompt_ids=(3, 4 + number), prompt_text="", rollouts=tuple(rollouts))


def samples(*groups: Group, drop_truncated: bool = False):
    advantage, _ = GroupStd()(advantage_input(groups), None)
    return flatten(groups, advantage, drop_truncated)


def test_flatten_numbers_rows_and_keeps_their_tokens():
    rows = samples(group(0, (0.0, 1.0)), group(1, (1.0, 0.0, 0.0)))
    assert [row.rollout_id for row in rows] == [0, 1, 2, 3, 4]
    assert [(row.group_id, row.index) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert rows[1].prompt_ids == (3, 4) and rows[1].completion_ids == (3, 4)
    assert rows[1].sampler_logprobs == (-0.5, -0.6) and rows[1].advantage == -rows[0].advantage > 0
    assert all(row.is_trained for row in rows)


@pytest.mark.parametrize("drop_truncated, trained", [(False, [True, True, False]), (True, [True, False, False])])
def test_unscored_and_cut_rows_are_not_trained_but_stay_rows(drop_truncated, trained):
    rows = samples(group(0, (0.0, 1.0, NAN), cut=(1,)), drop_truncated=drop_truncated)
    assert [row.is_trained for row in rows] == trained
    assert rows[2].advantage == 0
    step = assemble(rows, torch.device("cpu"))
    assert step.mask.any(dim=1).tolist() == trained and len(step.mask) == 3
    assert step.mask.shape[1] == 3, "an untrained row still has its width"
    assert (step.old_logprobs[~step.mask] == 0).all()
    # The row that was dropped is still counted: the others weigh 1/3 each.
    weight = gspo.GSPO().weights(step, gspo.GSPO().counts(step))
    assert weight.sum(dim=1).tolist() == pytest.approx([1 / 3 * is_trained for is_trained in trained])


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_mini_batches_part_the_rows_by_whole_groups(number, per_batch, size, seed, step):
    rows = samples(*(group(g, tuple(float(i) for i in range(size))) for g in range(number * per_batch)))
    batches = mini_batches(rows, number, seed, step)
    assert sorted(row.rollout_id for batch in batches for row in batch) == list(range(len(rows)))
    assert [len({row.group_id for row in batch}) for batch in batches] == [per_batch] * number
    assert [len(batch) for batch in batches] == [per_batch * size] * number
    assert batches == mini_batches(rows, number, seed, step)


def test_mini_batches_are_shuffled_by_seed_and_step():
    rows = samples(*(group(g, (0.0, 1.0)) for g in range(8)))
    order = lambda seed, step: [r.rollout_id for batch in mini_batches(rows, 4, seed, step) for r in batch]  # noqa: E731
    assert len({tuple(order(seed, step)) for seed in range(2) for step in range(2)}) == 4


def policy(seed: int = 0) -> TrainedPolicy:
    model = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32), seed).model
    # Padded, so that a row's arithmetic does not depend on its neighbours: norms are in float32.
    network = Network(model.double().eval())
    scorer = TokenScorer(network=network, scoring=Sampling(), micro_batch_tokens=20, layout="padded")
    return TrainedPolicy(scorer, AdamW(max_grad_norm=0.0))


def off_policy(rows) -> MiniBatch:
    """A step whose old log-probs are another policy's, so that ratios are not 1."""
    batch = MiniBatch(samples=rows, step=assemble(rows, torch.device("cpu")))
    return with_old_logprobs(batch, policy(seed=1).logprobs(batch.step).logprobs.float())


@pytest.mark.parametrize("objective", [gspo.GSPO(clip_low=9.0, clip_high=9.0), gspo.GRPO(), gspo.DAPO()])
def test_leaving_out_rows_without_gradient_changes_nothing(objective):
    rows = samples(group(0, (0.0, 1.0, 0.0)), group(1, (1.0, 1.0)), group(2, (NAN, 0.0, 1.0)), group(3, (0.0,)))
    batch = off_policy(rows)
    assert live_rows(batch.step, (objective,)) == [0, 1, 2, 6, 7]
    weight = objective.weights(batch.step, objective.counts(batch.step))
    gradients = []
    for chosen in (live_rows(batch.step, (objective,)), list(range(len(rows)))):
        trained = policy()
        trained.forward_backward(batch.step.rows(chosen), [weight[chosen]], (objective,))
        gradients.append({name: p.grad for name, p in trained.network.named_trainable()})
    assert any(g.abs().max() > 1e-6 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)


def test_a_reference_term_keeps_rows_without_advantage():
    step = assemble(samples(group(0, (1.0, 1.0)), group(1, (0.0, NAN))), torch.device("cpu"))
    assert live_rows(step, (gspo.GSPO(),)) == []
    assert live_rows(step, (gspo.GSPO(), gspo.ReferenceKL())) == [0, 1, 2]


def test_a_step_without_gradient_does_not_move_the_weights():
    trained = policy()
    before = {name: p.detach().clone() for name, p in trained.network.named_trainable()}
    made = update(trained, off_policy(samples(group(0, (1.0, 1.0)))), (gspo.GSPO(),), lr=0.1)
    assert made.result is None and made.grad_norm == 0
    assert all(torch.equal(before[name], p) for name, p in trained.network.named_trainable())


def test_replacing_one_sampler_logprob_is_seen_in_the_step():
    row = samples(group(0, (0.0, 1.0)))[1]
    step = assemble([replace(row, sampler_logprobs=(-1.0, -2.0))], torch.device("cpu"))
    assert step.old_logprobs.tolist() == [[-1.0, -2.0]] and step.length.tolist() == [2]
