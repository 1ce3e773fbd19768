"""Objectives that compare the rows of a group: micro-batches of whole groups, through a real network."""

from dataclasses import replace

import pytest
import torch
from small_models import network, ragged_step

import gspo
from gspo.functional import as_terms
from gspo.policies import TokenScorer, TrainedPolicy
from gspo.policies.master import AdamW
from gspo.policies.micro_batches import shared_tokens
from gspo.sampling import Sampling
from gspo.training.update import live_rows

OBJECTIVES = (gspo.AGRO(), gspo.REBEL(), gspo.DPO(), gspo.TRPA(kl_coef=0.1), gspo.EGSW(), gspo.EGSW(base=gspo.DAPO()))


def policy_of(net, budget, layout="padded", keeps=True):
    scorer = TokenScorer(
        network=net, scoring=Sampling(), micro_batch_tokens=budget, layout=layout, keeps_groups_whole=keeps
    )
    return TrainedPolicy(scorer, AdamW())


def whole_step(seed=1):
    step = ragged_step(seed, groups=6)
    make = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 2, (len(step.mask),), generator=make).double()
    return replace(step, rewards=rewards, reference_logprobs=step.old_logprobs + 0.1 * step.mask)


def gradient_of(policy, step, terms):
    for p in policy.network.model.parameters():
        p.grad = None
    result = policy.forward_backward(step, [t.weights(step, t.counts(step)) for t in terms], terms)
    grads = [p.grad.flatten() for p in policy.network.model.parameters() if p.grad is not None]
    return result, torch.cat(grads)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_any_budget_gives_the_gradient_of_the_whole(objective, layout):
    net, step, terms = network(), whole_step(), as_terms(objective)
    whole, expected = gradient_of(policy_of(net, 10**6), step, terms)
    small, got = gradient_of(policy_of(net, 25, layout), step, terms)
    assert expected.abs().max() > 0
    assert small.loss == pytest.approx(whole.loss, rel=1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6 * expected.abs().max().item())


def test_a_group_is_in_one_micro_batch_and_budgets_hold_where_a_group_fits():
    step = whole_step()
    for budget in (1, 25, 60, 10**6):
        batches = policy_of(network(), budget).scorer.micro_batches(step)
        assert sorted(row for rows in batches for row in rows) == list(range(len(step.mask)))
        groups = [set(step.group[rows].tolist()) for rows in batches]
        assert sum(map(len, groups)) == len(step.group.unique())
        for rows, members in zip(batches, groups, strict=True):
            width = max(len(step.payload.prompt[i]) + len(step.payload.completion[i]) for i in rows)
            assert width * len(rows) <= budget or len(members) == 1


def test_a_scorer_that_cuts_groups_is_refused():
    step, terms = whole_step(), (gspo.DPO(),)
    with pytest.raises(ValueError, match="keeps_groups_whole=True"):
        gradient_of(policy_of(network(), 25, keeps=False), step, terms)


def test_rows_of_groups_without_any_advantage_are_left_out_as_groups():
    """EGSW's softmax needs a group's rows of advantage 0 while another of its rows has one."""
    step = whole_step()
    first = int(step.group[0])
    members = (step.group == first).nonzero()[:, 0].tolist()
    advantage = step.advantage.clone()
    advantage[members] = 0.0
    quiet = replace(step, advantage=advantage)
    trained = step.mask.any(dim=1).nonzero()[:, 0].tolist()
    assert live_rows(quiet, (gspo.EGSW(),)) == [row for row in trained if row not in members]
    other = int(step.group[step.group != first][0])
    one = (step.group == other).nonzero()[:, 0].tolist()
    advantage[one[0]] = 0.0
    mixed = replace(step, advantage=advantage)
    assert set(one) & set(trained) <= set(live_rows(mixed, (gspo.EGSW(),))) or len(one) == 1
    assert one[0] not in live_rows(mixed, (gspo.GRPO(),))
    assert live_rows(mixed, (gspo.DPO(),)) == trained


@pytest.mark.parametrize("layout", ["shared_prefix", "auto"])
def test_micro_batches_of_shared_rows_are_balanced_and_keep_prompts_together(layout):
    step = ragged_step(7, groups=12)
    for budget in (1, 40, 100, 10**6):
        scorer = policy_of(network(), budget, layout, keeps=False).scorer
        batches = scorer.micro_batches(step)
        assert sorted(row for rows in batches for row in rows) == list(range(len(step.mask)))
        prompts = [{step.payload.prompt[row] for row in rows} for rows in batches]
        assert sum(map(len, prompts)) == len(set(step.payload.prompt))
        tokens = [shared_tokens(step.payload.prompt, step.payload.completion, rows) for rows in batches]
        assert all(total <= budget or len(held) == 1 for total, held in zip(tokens, prompts, strict=True))
        if budget == 100:
            assert len(batches) <= 1.5 * sum(tokens) / budget + 1 and max(tokens) < 1.6 * min(tokens)


def test_packed_rows_count_each_prompt_they_repeat():
    """What goes forward stays in the budget: a packed row brings its prompt again."""
    step = ragged_step(7, groups=12)
    for budget in (20, 60, 10**6):
        scorer = policy_of(network(), budget, "packed", keeps=False).scorer
        batches = scorer.micro_batches(step)
        assert sorted(row for rows in batches for row in rows) == list(range(len(step.mask)))
        for rows in batches:
            part = step.rows(rows).payload
            assert len(rows) == 1 or sum(map(len, (*part.prompt, *part.completion))) <= budget
