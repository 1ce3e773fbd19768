"""From scored groups to the tensors of each optimizer step. Pure: groups in, samples and steps out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gspo.advantages.base import AdvantageInput
from gspo.policies.payload import Payload
from gspo.requirements import VALUE_COLUMN
from gspo.training.sequences import pieces_of
from gspo.types import Group, Rollout, Sample, Step, UnitRewards


def advantage_input(
    groups: Sequence[Group],
    reward_weights: Sequence[float] | None = None,
    reference_logprobs: torch.Tensor | None = None,
) -> AdvantageInput:
    """The whole rollout batch as an advantage estimator sees it, rows in group order.

    With `reference_logprobs` [B,U] the sampler's log-probs go beside them, for a KL inside the reward.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if any(rollout.unit_rewards for rollout in rollouts):
        return _input_of_sets(rollouts, reward_weights)
    lengths = torch.tensor([len(r.completion.ids) for r in rollouts])
    return AdvantageInput(
        mask=torch.arange(int(lengths.max()))[None] < lengths[:, None],
        reward_weights=None if reward_weights is None else torch.tensor(reward_weights, dtype=torch.float64),
        values=_values(groups),
        old_logprobs=None if reference_logprobs is None else _sampler_logprobs(rollouts),
        reference_logprobs=reference_logprobs,
        turn=_turns(rollouts),
        turn_rewards=_turn_rewards(rollouts),
        rewards=torch.tensor([r.rewards for r in rollouts], dtype=torch.float64),
        total=torch.tensor([r.reward for r in rollouts], dtype=torch.float64),
        group=torch.tensor([r.group_id for r in rollouts]),
        length=lengths,
    )


def _input_of_sets(rollouts: Sequence[Rollout], reward_weights: Sequence[float] | None) -> AdvantageInput:
    """Units that compete in sets: a row is a unit, a group the set it belongs to. See `on_units`."""
    rewards = [rollout.unit_rewards for rollout in rollouts if rollout.unit_rewards is not None]
    total = torch.from_numpy(np.concatenate([r.total for r in rewards])).double()
    sets = np.repeat(np.arange(sum(len(r.total) // r.set_size for r in rewards)), _sizes(rewards))
    return AdvantageInput(
        rewards=torch.from_numpy(np.concatenate([r.values for r in rewards])).double(),
        reward_weights=None if reward_weights is None else torch.tensor(reward_weights, dtype=torch.float64),
        total=total,
        group=torch.from_numpy(sets),
        length=torch.ones(len(total), dtype=torch.long),
    )


def _sizes(rewards: Sequence[UnitRewards]) -> list[int]:
    """Of every set, in order."""
    return [r.set_size for r in rewards for _ in range(len(r.total) // r.set_size)]


def on_units(advantage: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
    """What an estimator gave, one per rollout or unit of a rollout; where units compete in sets, [B,U] of it."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not any(rollout.unit_rewards for rollout in rollouts):
        return advantage
    lengths = [len(rollout.completion.ids) for rollout in rollouts]
    return torch.nn.utils.rnn.pad_sequence(list(advantage.split(lengths)), batch_first=True)


def _sampler_logprobs(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """[B,U], 0 behind each completion."""
    out = np.zeros((len(rollouts), max(len(r.completion.ids) for r in rollouts)), dtype=np.float32)
    for row, rollout in enumerate(rollouts):
        out[row, : len(rollout.completion.logprobs)] = rollout.completion.logprobs
    return torch.from_numpy(out)


def _turns(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """[B,U] number of the turn of each unit; 0 behind the last."""
    own = [[t for t, turn in enumerate(r.turns) for _ in turn.completion.ids] for r in rollouts]
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(x, dtype=torch.long) for x in own], batch_first=True)


def _turn_rewards(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """[B,T], NaN where there is none."""
    out = torch.full((len(rollouts), max(1, *(len(r.turns) for r in rollouts))), torch.nan, dtype=torch.float64)
    for row, rollout in enumerate(rollouts):
        for t, turn in enumerate(rollout.turns):
            out[row, t] = turn.reward
    return out


def _values(groups: Sequence[Group]) -> torch.Tensor | None:
    """Column `value` of each row's prompt, where the data has it."""
    if not all(VALUE_COLUMN in group.columns for group in groups):
        return None
    return torch.tensor([float(g.columns[VALUE_COLUMN]) for g in groups for _ in g.rollouts], dtype=torch.float64)


def flatten(groups: Sequence[Group], advantage: torch.Tensor, drop_truncated: bool) -> list[Sample]:
    """One training sample per sequence of a rollout's turns; there is one, while the conversation only grows.

    `advantage` is one per rollout, or one per unit of each rollout, turn after turn. Unscored rollouts, and those that
    a limit ended under the overlong filter, are not trained.
    """
    samples: list[Sample] = []
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    for number, (group, rollout) in enumerate(rollouts):
        is_scored = rollout.reward == rollout.reward
        units = 0
        for part, piece in enumerate(pieces_of(rollout.turns)):
            samples.append(
                Sample(
                    group_id=rollout.group_id,
                    rollout_id=number,
                    part=part,
                    index=rollout.index,
                    prompt_ids=piece.prompt_ids or group.prompt_ids,
                    completion_ids=piece.ids,
                    mask=None if all(piece.mask) else piece.mask,
                    sampler_logprobs=piece.logprobs,
                    advantage=_of_piece(advantage[number], units, piece.mask),
                    reward=rollout.reward,
                    is_trained=is_scored and not (drop_truncated and rollout.is_truncated),
                    inputs=group.inputs,
                    replay=piece.replay,
                )
            )
            units += sum(piece.mask)
    return samples


def _of_piece(advantage: torch.Tensor, start: int, mask: Sequence[bool]) -> float | tuple[float, ...]:
    """A rollout's one advantage; or those of its units from `start` on, laid on a piece's chosen ids."""
    if advantage.ndim == 0:
        return float(advantage)
    units = iter(advantage[start : start + sum(mask)].tolist())
    return tuple(next(units) if is_unit else 0.0 for is_unit in mask)


def units_of_rollouts(values: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
    """[samples, ids] -> [rollouts, units]: what the policy chose, the pieces of a rollout one after another."""
    found: dict[int, list[torch.Tensor]] = {}
    for row, sample in enumerate(samples):
        own = values[row, : len(sample.completion_ids)]
        own = own if sample.mask is None else own[torch.tensor(sample.mask)]
        found.setdefault(sample.rollout_id, []).append(own)
    return torch.nn.utils.rnn.pad_sequence([torch.cat(pieces) for pieces in found.values()], batch_first=True)


def mini_batches(samples: Sequence[Sample], number: int, seed: int, step: int) -> list[list[Sample]]:
    """Whole groups, shuffled by (seed, step), in `number` mini-batches of equally many groups, or nearly so.

    With fewer groups than that there are as many mini-batches as groups.
    """
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group_id, []).append(sample)
    order = np.random.Generator(np.random.Philox(key=[seed, step])).permutation(len(groups))
    members = list(groups.values())
    parts = np.array_split(order, min(number, len(groups)))
    return [[sample for g in part for sample in members[g]] for part in parts]


def assemble(samples: Sequence[Sample], device: torch.device) -> Step:
    """The step of a mini-batch; old log-probs are the sampler's until `with_old_logprobs` replaces them."""
    width = max(1, *(len(sample.completion_ids) for sample in samples))
    mask = np.zeros((len(samples), width), dtype=bool)
    sampler = np.zeros((len(samples), width), dtype=np.float32)
    for row, sample in enumerate(samples):
        length = len(sample.completion_ids)
        mask[row, :length] = sample.is_trained and (sample.mask or True)
        sampler[row, :length] = sample.sampler_logprobs if sample.is_trained else 0.0
    on_device = lambda x: torch.as_tensor(x).to(device)  # noqa: E731
    sampler_logprobs = on_device(sampler)
    return Step(
        mask=on_device(mask),
        advantage=on_device(_advantages(samples, width)),
        old_logprobs=sampler_logprobs,
        length=on_device(mask.sum(axis=1)),
        group=on_device(np.array([s.group_id for s in samples])),
        rollout=on_device(np.array([s.rollout_id for s in samples])),
        rewards=on_device(np.array([s.reward for s in samples], dtype=np.float32)),
        sampler_logprobs=sampler_logprobs,
        payload=Payload(
            prompt=tuple(sample.prompt_ids for sample in samples),
            completion=tuple(sample.completion_ids for sample in samples),
            inputs=_where_there(sample.inputs for sample in samples),
            replay=_where_there(sample.replay for sample in samples),
        ),
    )


def _where_there(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """None where no row has any."""
    found = tuple(values)
    return None if all(value is None for value in found) else found


def _advantages(samples: Sequence[Sample], width: int) -> np.ndarray:
    """[B], or [B,U] where the samples have one per unit."""
    if not any(isinstance(sample.advantage, tuple) for sample in samples):
        return np.array([sample.advantage for sample in samples], dtype=np.float32)
    advantage = np.zeros((len(samples), width), dtype=np.float32)
    for row, sample in enumerate(samples):
        advantage[row, : len(sample.completion_ids)] = sample.advantage if sample.is_trained else 0.0
    return advantage


@dataclass(frozen=True, kw_only=True)
class MiniBatch:
    """The rows of one optimizer update, and their step."""

    samples: list[Sample]
    step: Step


def with_old_logprobs(batch: MiniBatch, old: torch.Tensor) -> MiniBatch:
    return replace(batch, step=replace(batch.step, old_logprobs=old, old_from_forward=False))


def with_old_from_forward(batch: MiniBatch) -> MiniBatch:
    return replace(batch, step=replace(batch.step, old_from_forward=True))


def with_old_entropy(batch: MiniBatch, entropy: torch.Tensor) -> MiniBatch:
    return replace(batch, step=replace(batch.step, old_entropy=entropy))


def with_reference(batch: MiniBatch, reference: torch.Tensor) -> MiniBatch:
    return replace(batch, step=replace(batch.step, reference_logprobs=reference))


def with_replay(batch: MiniBatch, rows: Sequence[int], replay: tuple[Any, ...] | None) -> MiniBatch:
    """With what scoring `rows` recorded; None changes nothing."""
    if replay is None:
        return batch
    known = list(batch.step.payload.replay or (None,) * len(batch.samples))
    for row, record in zip(rows, replay, strict=True):
        known[row] = record
    return replace(batch, step=replace(batch.step, payload=batch.step.payload.with_replay(tuple(known))))
