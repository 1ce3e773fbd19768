"""pass@k: a completion is worth what the best of k completions is worth on average when it is among them.

Chen et al. 2025 (Pass@k Training), https://arxiv.org/abs/2508.10751

    R(S) = max of R over a set S of k completions of the group
    A_i  = (mean of R(S) over S with i - mean of R(S) over all S) / (std of R(S) over all S + eps)

In closed form, by sorting. With binary rewards, p right ones and N of all: the mean over all S is 1 - C(N - p, k) /
C(N, k), and a right completion's is 1. A group in which every set is worth the same gets 0. k = 1 is the group mean
with a biased std. Departures: rewards need not be binary. Certainty: the binary case is from memory of the paper, and
a test holds this against the enumeration of all sets. verl's grpo_passk is another: it gives the best its lead over
the second and the rest 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gspo.advantages.base import AdvantageInput, EstimatorTraits, no_state


@dataclass(frozen=True, kw_only=True)
class PassAtK:
    name: Literal["pass_at_k"] = "pass_at_k"
    k: int = 4
    """Completions of a set; below the group's size."""
    eps: float = 1e-4
    """Added to the standard deviation."""

    init = staticmethod(no_state)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"pass_at_k: k is {self.k}; it must be at least 1")

    @property
    def traits(self) -> EstimatorTraits:
        return EstimatorTraits(min_group=self.k + 1)

    def __call__(self, batch: AdvantageInput, state: None) -> tuple[Float[Tensor, "B"], None]:
        advantage = torch.zeros(batch.total.shape, dtype=torch.float64)
        total = batch.total.double().cpu()
        for group in batch.group.unique():
            rows = ((batch.group == group).cpu() & ~total.isnan()).nonzero()[:, 0]
            if len(rows) > self.k:
                order = total[rows].sort()
                advantage[rows[order.indices]] = self._of_sorted(order.values)
        return advantage.to(batch.total.device), state

    def _of_sorted(self, reward: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Advantages of one group's rewards in rising order."""
        number, k = len(reward), self.k
        # The j-th smallest is the largest of C(j, k - 1) sets; among the sets with i (of the others, j' below it).
        largest = torch.tensor([math.comb(j, k - 1) for j in range(number)], dtype=torch.float64)
        largest = largest / math.comb(number, k)
        mean = (largest * reward).sum()
        std = (largest * (reward - mean).square()).sum().sqrt()
        if std < SAME:
            return torch.zeros_like(reward)
        sets = math.comb(number - 1, k - 1)
        above = torch.tensor([math.comb(j - 1, k - 2) if j and k > 1 else 0 for j in range(number)])
        above = above.double() / sets
        alone = torch.tensor([math.comb(i, k - 1) for i in range(number)], dtype=torch.float64) / sets
        higher = (above * reward).flip(0).cumsum(0).flip(0) - above * reward
        return (alone * reward + higher - mean) / (std + self.eps)


SAME = 1e-12
"""Standard deviation below which all sets are worth the same."""
