"""Advantages per turn, against a slow reading of their formulas, and on their way into GSPO-token."""

import math

import pytest
import torch
from scripted import Scripted, source_of

import gspo
from gspo.advantages import AdvantageInput
from gspo.envs import Observation
from gspo.training.batch import advantage_input, assemble, flatten

NAN = math.nan


def slow(batch, gamma, eps):
    """Row by row, turn by turn, unit by unit."""
    rows, units = batch.mask.shape
    turns = [1 + max(int(batch.turn[i, u]) for u in range(units) if batch.mask[i, u]) for i in range(rows)]
    returns = []
    for i in range(rows):
        given = [0.0 if math.isnan(r) else r for r in batch.turn_rewards[i].tolist()]
        given[turns[i] - 1] += batch.total[i].item() - sum(given)
        returns.append([sum(gamma ** (s - t) * given[s] for s in range(t, turns[i])) for t in range(turns[i])])
    out = torch.zeros(rows, units, dtype=torch.float64)
    for i in range(rows):
        for u in range(units):
            t = int(batch.turn[i, u])
            others = [j for j in range(rows) if batch.group[j] == batch.group[i] and turns[j] > t]
            others = [returns[j][t] for j in others if not math.isnan(returns[j][t])]
            if batch.mask[i, u] and len(others) > 1 and max(others) > min(others) and not math.isnan(returns[i][t]):
                mean = sum(others) / len(others)
                std = math.sqrt(sum((x - mean) ** 2 for x in others) / (len(others) - 1))
                out[i, u] = (returns[i][t] - mean) / (std + eps)
    return out


def batch_of(seed=0, rows=8, units=9):
    make = torch.Generator().manual_seed(seed)
    length = torch.randint(1, units + 1, (rows,), generator=make)
    turn = torch.randint(0, 2, (rows, units), generator=make).cumsum(dim=1).clamp(max=3)
    turn -= turn[:, :1].clone()
    reward = torch.randn(rows, 4, generator=make, dtype=torch.float64)
    reward[torch.rand(rows, 4, generator=make) < 0.3] = NAN
    last = torch.stack([turn[i, : length[i]].max() for i in range(rows)])
    reward[torch.arange(4)[None] > last[:, None]] = NAN
    total = torch.randn(rows, generator=make, dtype=torch.float64)
    total[2] = NAN
    return AdvantageInput(
        rewards=total[:, None], total=total, group=torch.arange(rows) // 4, length=length,
        mask=torch.arange(units)[None] < length[:, None], turn=turn, turn_rewards=reward,
    )  # fmt: skip


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_as_the_formulas_say(gamma, seed):
    batch = batch_of(seed)
    got, _ = gspo.TurnReturns(gamma=gamma)(batch, None)
    torch.testing.assert_close(got, slow(batch, gamma, 1e-4), rtol=1e-9, atol=1e-9)


def test_one_turn_is_group_std():
    batch = batch_of(3)
    one = AdvantageInput(
        **{**vars(batch), "turn": torch.zeros_like(batch.turn), "turn_rewards": torch.full((8, 1), NAN)}
    )
    expected = gspo.GroupStd()(one, None)[0]
    torch.testing.assert_close(gspo.TurnReturns()(one, None)[0], expected[:, None] * one.mask)


def test_they_reach_the_tokens_of_their_turn():
    """Two rollouts, alike but for the reward of the second turn: turn 1 and 2 differ by it, turn 3 does not."""
    made = []

    def factory(row, seed):
        made.append(len(made))
        second = 1.0 if len(made) == 1 else 0.0
        answers = [Observation(content="b", reward=0.0), Observation(content="c", reward=second)]
        return Scripted([*answers, Observation(reward=0.0, is_done=True)])

    source = source_of(factory, lambda index, turn: ["x y|", "z|", "w|"][turn], group_size=2)
    groups = source.wave(source.next_rows(0, 1), 0).groups
    advantage, _ = gspo.TurnReturns()(advantage_input(groups), None)
    samples = flatten(groups, advantage, False)
    high = max(s.advantage[0] for s in samples)
    assert high > 0.7
    for sample in samples:
        a = sample.advantage[0]
        assert sample.advantage == (a, a, a, a, 0.0, a, a, 0.0, 0.0, 0.0)  # x y | b z | c w |, nothing of turn 3
        assert abs(a) == high
    step = assemble(samples, torch.device("cpu"))
    objective = gspo.GSPOToken()
    logprobs = step.old_logprobs.clone().requires_grad_()
    gain = objective.gain(gspo.types.Scores(logprobs=logprobs), step)
    (-(gain * objective.weights(step, objective.counts(step))).sum()).backward()
    assert (logprobs.grad[:, :4] != 0).all() and (logprobs.grad[:, 4] == 0).all() and (logprobs.grad[:, 8:] == 0).all()


def test_an_objective_per_sequence_refuses_them_before_the_first_step():
    from gspo.requirements import unmet

    said = unmet((gspo.GSPO(),), gspo.TurnReturns(), group_size=4, updates_per_rollout=4)
    assert "gspo_token" in said[0]
