"""Random optimizer steps for the laws: ragged masks with holes, an empty row, NaN behind the mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

import gspo
from gspo.functional import Terms, as_terms


@dataclass(frozen=True)
class Inputs:
    """Everything `gspo.loss` takes, in float64."""

    logprobs: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    entropy: Tensor
    mask: Tensor
    advantage: Tensor
    group: Tensor
    rewards: Tensor

    def rows(self, index: Tensor) -> "Inputs":
        return Inputs(*(value[index] for value in vars(self).values()))


def random_inputs(seed: int = 0, groups: int = 3, size: int = 4, units: int = 7, spread: float = 0.3) -> Inputs:
    """`spread` is the standard deviation of the token log-ratio. Row 1 is empty; masks have holes."""
    make = torch.Generator().manual_seed(seed)
    rows = groups * size
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    old = -normal(rows, units).abs() - 0.1
    lengths = torch.randint(1, units + 1, (rows,), generator=make)
    mask = torch.arange(units)[None] < lengths[:, None]
    mask &= torch.rand(rows, units, generator=make) > 0.15
    mask[1] = False
    rewards = torch.randint(0, 2, (rows,), generator=make).double() + 0.1 * normal(rows)
    group = torch.arange(groups).repeat_interleave(size)
    return Inputs(
        logprobs=old + spread * normal(rows, units),
        old_logprobs=old,
        reference_logprobs=old + spread * normal(rows, units),
        entropy=normal(rows, units).abs(),
        mask=mask,
        advantage=normal(rows),
        group=group,
        rewards=rewards,
    )


def value_and_gradient(terms: Terms, x: Inputs, weight: object = None) -> tuple[Tensor, Tensor]:
    """Loss and its gradient in the log-probs of all rows."""
    leaf = x.logprobs.detach().clone().requires_grad_(True)
    out = loss_of(terms, x, leaf, weight)
    out.backward()
    return out.detach(), leaf.grad


def loss_of(terms: Terms, x: Inputs, logprobs: Tensor, weight: object = None) -> Tensor:
    # Entropy moves with the log-probs so that its gradient is seen too.
    shift = torch.where(x.mask, logprobs - x.logprobs, torch.zeros_like(logprobs))
    return gspo.loss(
        terms,
        logprobs,
        old_logprobs=x.old_logprobs,
        mask=x.mask,
        advantage=x.advantage,
        weight=weight,
        group=x.group,
        rewards=x.rewards,
        reference_logprobs=x.reference_logprobs,
        entropy=x.entropy + shift,
    ).loss


def weights_of(terms: Terms, x: Inputs) -> tuple[Tensor, ...]:
    made = gspo.weights(terms, x.mask, group=x.group, rewards=x.rewards, old_logprobs=x.old_logprobs)
    return made if isinstance(made, tuple) else (made,)


def names(terms: Terms) -> str:
    return "+".join(term.name for term in as_terms(terms))
