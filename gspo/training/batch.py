"""From scored groups to the tensors of each optimizer step. Pure: groups in, samples and steps out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gspo.advantages.base import AdvantageInput
from gspo.policies.causal_lm import TokenPayload
from gspo.types import Group, Sample, Step


def advantage_input(groups: Sequence[Group]) -> AdvantageInput:
    """The whole rollout batch as an advantage estimator sees it, rows in group order."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return AdvantageInput(
        rewards=torch.tensor([r.rewards for r in rollouts], dtype=torch.float64),
        total=torch.tensor([r.reward for r in rollouts], dtype=torch.float64),
        group=torch.tensor([r.group_id for r in rollouts]),
        length=torch.tensor([len(r.completion.ids) for r in rollouts]),
    )


def flatten(groups: Sequence[Group], advantage: torch.Tensor, drop_truncated: bool) -> list[Sample]:
    """One training sample per rollout. Unscored rollouts, and cut ones under the overlong filter, are not trained."""
    samples: list[Sample] = []
    for group in groups:
        for rollout in group.rollouts:
            is_scored = rollout.reward == rollout.reward
            is_cut = rollout.completion.finish_reason == "length"
            samples.append(
                Sample(
                    group_id=rollout.group_id,
                    rollout_id=len(samples),
                    index=rollout.index,
                    prompt_ids=group.prompt_ids,
                    completion_ids=rollout.completion.ids,
                    sampler_logprobs=rollout.completion.logprobs,
                    advantage=float(advantage[len(samples)]),
                    reward=rollout.reward,
                    is_trained=is_scored and not (drop_truncated and is_cut),
                )
            )
    return samples


def mini_batches(samples: Sequence[Sample], number: int, seed: int, step: int) -> list[list[Sample]]:
    """Whole groups, shuffled by (seed, step), in `number` mini-batches of equally many groups."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group_id, []).append(sample)
    order = np.random.Generator(np.random.Philox(key=[seed, step])).permutation(len(groups))
    members = list(groups.values())
    size = len(groups) // number
    return [[s for g in order[i * size : (i + 1) * size] for s in members[g]] for i in range(number)]


def assemble(samples: Sequence[Sample], device: torch.device) -> Step:
    """The step of a mini-batch; old log-probs are the sampler's until `with_old_logprobs` replaces them."""
    width = max(len(sample.completion_ids) for sample in samples)
    mask = np.zeros((len(samples), width), dtype=bool)
    sampler = np.zeros((len(samples), width), dtype=np.float32)
    for row, sample in enumerate(samples):
        length = len(sample.completion_ids)
        mask[row, :length] = sample.is_trained
        sampler[row, :length] = sample.sampler_logprobs if sample.is_trained else 0.0
    on_device = lambda x: torch.as_tensor(x).to(device)  # noqa: E731
    sampler_logprobs = on_device(sampler)
    return Step(
        mask=on_device(mask),
        advantage=on_device(np.array([s.advantage for s in samples], dtype=np.float32)),
        old_logprobs=sampler_logprobs,
        length=on_device(mask.sum(axis=1)),
        group=on_device(np.array([s.group_id for s in samples])),
        rollout=on_device(np.array([s.rollout_id for s in samples])),
        rewards=on_device(np.array([s.reward for s in samples], dtype=np.float32)),
        sampler_logprobs=sampler_logprobs,
        payload=TokenPayload(
            tuple(sample.prompt_ids for sample in samples), tuple(sample.completion_ids for sample in samples)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class MiniBatch:
    """The rows of one optimizer update, and their step."""

    samples: list[Sample]
    step: Step


def with_old_logprobs(batch: MiniBatch, old: torch.Tensor) -> MiniBatch:
    return replace(batch, step=replace(batch.step, old_logprobs=old))


def with_reference(batch: MiniBatch, reference: torch.Tensor) -> MiniBatch:
    return replace(batch, step=replace(batch.step, reference_logprobs=reference))
