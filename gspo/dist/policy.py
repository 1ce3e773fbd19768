"""A policy whose rows are scored and trained by many ranks, each its own groups, all of them given back to all.

Every rank calls with the same step. Whole groups stay on one rank, balanced by tokens; which rank gets which follows
from the rows alone, so that scoring and training agree. The weights were made on the whole step before, so that the
gradients of ranks add up to that of one process, clipping included.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gspo.dist.ranks import Ranks
from gspo.dist.shards import Placement
from gspo.objectives.base import UnitObjective
from gspo.policies.base import StepResult
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.master import AdamW, MasterWeights
from gspo.policies.trained import CountsFirst, Scorer, TrainedPolicy
from gspo.types import Explanation, Scores, Step


def shares(step: Step, size: int) -> list[list[int]]:
    """Rows of each share: whole groups, the largest first to the rank with the fewest tokens so far."""
    tokens = [len(p) + len(c) for p, c in zip(step.payload.prompt, step.payload.completion, strict=True)]
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(step.group.tolist()):
        rows_of.setdefault(group, []).append(row)
    weight = {group: sum(tokens[row] for row in rows) for group, rows in rows_of.items()}
    found: list[list[int]] = [[] for _ in range(size)]
    load = [0] * size
    for group in sorted(rows_of, key=lambda g: (-weight[g], g)):
        rank = min(range(size), key=lambda r: (load[r], r))
        found[rank] += rows_of[group]
        load[rank] += weight[group]
    return [sorted(rows) for rows in found]


@dataclass(frozen=True, eq=False, kw_only=True)
class RankedScorer:
    """Log-probs without gradient of a step's rows, scored by all ranks: of the policy, or of a reference."""

    scorer: Scorer
    ranks: Ranks
    placement: Placement

    def logprobs(self, step: Step) -> Scores:
        own = shares(step, self.placement.shares)[self.placement.share]
        part = step.rows(own)
        missing = self.missing(part)
        found = self.scorer.logprobs(part) if own else None
        with torch.no_grad():
            self.fill_in(step, missing)
        self.placement.rest()
        sent = (own, _on_cpu(found)) if found is not None and self.placement.speaks else None
        return _joined_scores(step, [each for each in self.ranks.everyone(sent) if each is not None])

    def missing(self, part: Step) -> int:
        """Passes that this rank makes fewer than the one that makes most; asked before the first of them."""
        if not self.placement.in_step:
            return 0
        made = len(self.scorer.micro_batches(part)) if len(part.group) else 0
        return self.ranks.largest(made) - made

    def fill_in(self, step: Step, number: int) -> None:
        """Passes over a short row, for nothing but the collectives in them."""
        if not number:
            return
        assert isinstance(self.scorer, TokenScorer)
        lengths = [len(p) + len(c) for p, c in zip(step.payload.prompt, step.payload.completion, strict=True)]
        row = step.rows([min(range(len(lengths)), key=lambda i: (not step.mask[i].any(), lengths[i], i))])
        for _ in range(number):
            scores = self.scorer.choosing().score(row, "value")
            if torch.is_grad_enabled():
                (scores.logprobs.sum() * 0.0).backward()


class RankedPolicy:
    """`TrainedPolicy` on every rank, and what they say to each other."""

    def __init__(self, inner: TrainedPolicy, ranks: Ranks, placement: Placement) -> None:
        self.inner, self.ranks, self.placement = inner, ranks, placement
        self.network = inner.network

    @property
    def scorer(self) -> Any:
        """Of this rank's rows."""
        return self.inner.scorer

    @scorer.setter
    def scorer(self, scorer: Any) -> None:
        self.inner.scorer = scorer

    @property
    def weights(self) -> MasterWeights:
        return self.inner.weights

    def logprobs(self, step: Step) -> Scores:
        return self._ranked().logprobs(step)

    def _ranked(self) -> RankedScorer:
        return RankedScorer(scorer=self.scorer, ranks=self.ranks, placement=self.placement)

    def forward_backward(self, step: Step, weight: Sequence[Tensor], terms: Sequence[UnitObjective]) -> StepResult:
        """Add the gradient of the step's loss, each rank that of its own rows."""
        if isinstance(self.scorer, CountsFirst):
            step = self.scorer.counted(step)  # over all rows, on every rank
        own = shares(step, self.placement.shares)[self.placement.share]
        part = step.rows(own)
        missing = self._ranked().missing(part)
        result = self.inner.forward_backward(part, [w[own] for w in weight], terms) if own else None
        self._ranked().fill_in(step, missing)
        self.placement.rest()
        sent = (own, result) if result is not None and self.placement.speaks else None
        return _joined_results(step, [each for each in self.ranks.everyone(sent) if each is not None])

    def optim_step(self, lr: float) -> float:
        """One AdamW update of every rank's part of the weights."""
        return self.inner.optim_step(lr)

    def over_same_network(self, scorer: Scorer, optimizer: AdamW) -> "RankedPolicy":
        inner = TrainedPolicy(scorer, optimizer, self.placement.total_norm)
        return RankedPolicy(inner, self.ranks, self.placement)

    def whole(self) -> AbstractContextManager[None]:
        return self.placement.whole()

    def plain_model(self) -> nn.Module:
        return self.placement.plain_model()


def _on_cpu(scores: Scores) -> Scores:
    return Scores(
        logprobs=scores.logprobs.cpu(),
        entropy=None if scores.entropy is None else scores.entropy.cpu(),
        replay=scores.replay,
    )


def _rows(step: Step, parts: Sequence[tuple[list[int], Tensor]], device: Any = "cpu") -> Tensor:
    """[B,U] from the rows of ranks."""
    first = parts[0][1]
    out = torch.zeros((len(step.group), *first.shape[1:]), dtype=first.dtype)
    for rows, values in parts:
        out[rows] = values
    return out.to(device)


def _replay(step: Step, parts: Sequence[tuple[list[int], tuple[Any, ...] | None]]) -> tuple[Any, ...] | None:
    if any(records is None for _, records in parts):
        return None
    found = {row: record for rows, records in parts for row, record in zip(rows, records or (), strict=True)}
    return tuple(found[row] for row in range(len(step.group)))


def _joined_scores(step: Step, found: Sequence[tuple[list[int], Scores]]) -> Scores:
    device = step.mask.device
    return Scores(
        logprobs=_rows(step, [(rows, s.logprobs) for rows, s in found], device),
        entropy=_rows(step, [(rows, s.entropy) for rows, s in found if s.entropy is not None], device),
        replay=_replay(step, [(rows, s.replay) for rows, s in found]),
    )


def _joined_results(step: Step, found: Sequence[tuple[list[int], StepResult]]) -> StepResult:
    join = lambda of: _rows(step, [(rows, of(result)) for rows, result in found])  # noqa: E731
    why = found[0][1].explanation
    return StepResult(
        loss=sum(result.loss for _, result in found),
        logprobs=join(lambda r: r.logprobs),
        entropy=join(lambda r: r.entropy),
        unit_gradient=join(lambda r: r.unit_gradient),
        explanation=Explanation(
            log_ratio=join(lambda r: r.explanation.log_ratio),
            bound=join(lambda r: r.explanation.bound),
            level=why.level,
            band=why.band,
        ),
        replay=_replay(step, [(rows, result.replay) for rows, result in found]),
    )
