"""A policy that trains in this process: anything that scores rows under a network, and AdamW on that network's weights.

What differs between causal language models, diffusion models, representation models and image models is how rows are
scored, and that is a `Scorer`. The step around it is the same: rows cut into micro-batches, the objective's loss on
each, gradients added up, one update.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from gspo.functional import explain, total_loss
from gspo.objectives.base import UnitObjective
from gspo.policies.base import StepResult
from gspo.policies.master import AdamW, MasterWeights, TotalNorm, norm_of
from gspo.types import Explanation, Scores, Step


class TrainedNetwork(Protocol):
    """The module whose weights move. `model` has `save_pretrained`."""

    model: nn.Module

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Scorer(Protocol):
    """Log-likelihoods of what was chosen, under a network; frozen, and the same rows give the same bits."""

    @property
    def network(self) -> Any: ...
    @property
    def keeps_groups_whole(self) -> bool:
        """Micro-batches hold whole groups, for objectives that compare the rows of one."""
        ...

    @property
    def redraws(self) -> bool:
        """Whether the likelihood is estimated from random draws: each epoch has its own, which old, reference and
        current log-probs share (`Payload.draw`)."""
        ...

    def micro_batches(self, step: Step) -> list[list[int]]: ...
    def score(self, part: Step, entropy: str) -> Scores:
        """Of the rows of a micro-batch; gradient flows. entropy: "value", or "gradient" where it must flow too."""
        ...

    def logprobs(self, step: Step) -> Scores:
        """Without gradient, cut as in training; see `scored`."""
        ...

    def with_model(self, model: nn.Module) -> Self:
        """The same way of scoring under other weights: a reference."""
        ...

    def imitating(self) -> Self:
        """For supervised training: the model's own distribution, whatever sampling does to it."""
        ...


@runtime_checkable
class CountsFirst(Protocol):
    """A scorer that must know something of the whole update before any of its rows goes forward."""

    def counted(self, step: Step) -> Step:
        """The step with `Payload.counted`."""
        ...


@torch.no_grad()
def scored(scorer: Scorer, step: Step) -> Scores:
    """Log-probs and entropies [B,U] of the step's units, without gradient; 0 outside the mask.

    Rows are cut into the same micro-batches as in `TrainedPolicy.forward_backward`, so that at equal weights the two
    agree to the bit.
    """
    batches = scorer.micro_batches(step)
    parts = [scorer.score(step.rows(rows), "value") for rows in batches]
    back = _inverse(batches, step.mask.device)
    return Scores(
        logprobs=torch.cat([part.logprobs for part in parts])[back],
        entropy=torch.cat([_entropy(part) for part in parts])[back],
        replay=_in_order([part.replay for part in parts], back),
    )


class TrainedPolicy:
    """Trains the network behind a scorer with AdamW."""

    def __init__(self, scorer: Scorer, optimizer: AdamW, total_norm: TotalNorm = norm_of) -> None:
        self.scorer = scorer
        self.network = scorer.network
        self.weights = MasterWeights(self.network.named_trainable(), optimizer, total_norm)

    def logprobs(self, step: Step) -> Scores:
        """See `scored`."""
        return self.scorer.logprobs(step)

    def forward_backward(self, step: Step, weight: Sequence[Tensor], terms: Sequence[UnitObjective]) -> StepResult:
        """Add the gradient of the step's loss; micro-batches add up because `weight` was made on the whole step.

        Only the given rows go through the network: a caller may leave out rows whose gradient is known to be 0.
        """
        if any(term.traits.keeps_groups_whole for term in terms) and not self.scorer.keeps_groups_whole:
            raise ValueError("an objective compares the rows of a group: build the scorer with keeps_groups_whole=True")
        entropy = "gradient" if any("entropy_gradient" in term.traits.needs for term in terms) else "value"
        if isinstance(self.scorer, CountsFirst):
            step = self.scorer.counted(step)
        batches = self.scorer.micro_batches(step)
        losses, found, gradients, why, replays = [], [], [], [], []
        for rows in batches:
            part = step.rows(rows)
            scores = self.scorer.score(part, entropy)
            if part.old_from_forward:
                part = replace(part, old_logprobs=scores.logprobs.detach().to(part.old_logprobs.dtype))
            loss = total_loss(terms, [w[rows] for w in weight], scores, part)
            scores.logprobs.retain_grad()
            (loss if scores.penalty is None else loss + scores.penalty).backward()
            losses.append(loss.item())
            found.append((scores.logprobs.detach(), _entropy(scores).detach()))
            gradients.append(scores.logprobs.grad)
            why.append(explain(terms, scores, part))
            replays.append(scores.replay)
        back = _inverse(batches, step.mask.device)
        merge = lambda parts: torch.cat(list(parts))[back].cpu()  # noqa: E731
        return StepResult(
            loss=sum(losses),
            logprobs=merge(logprobs for logprobs, _ in found),
            entropy=merge(entropy for _, entropy in found),
            unit_gradient=merge(gradients),
            explanation=Explanation(
                log_ratio=merge(e.log_ratio for e in why),
                bound=merge(e.bound for e in why),
                level=why[0].level,
                band=why[0].band,
            ),
            replay=_in_order(replays, back),
        )

    def optim_step(self, lr: float) -> float:
        """One AdamW update; returns the gradient norm of the whole step before clipping."""
        return self.weights.step(lr)

    def over_same_network(self, scorer: Scorer, optimizer: AdamW) -> "TrainedPolicy":
        """A policy that moves the same weights by another way of scoring."""
        return TrainedPolicy(scorer, optimizer)

    def whole(self) -> AbstractContextManager[None]:
        """All weights at hand, as they always are here."""
        return nullcontext()

    def plain_model(self) -> nn.Module:
        """An ordinary model with all weights."""
        return self.network.model


def _inverse(batches: list[list[int]], device: torch.device) -> Tensor:
    """Positions that put the concatenated micro-batches back into the order of the step."""
    return torch.tensor([row for rows in batches for row in rows], device=device).argsort()


def _entropy(scores: Scores) -> Tensor:
    assert scores.entropy is not None
    return scores.entropy


def _in_order(parts: Sequence[tuple[Any, ...] | None], back: Tensor) -> tuple[Any, ...] | None:
    """What the micro-batches recorded, in the order of the step; None where they recorded nothing."""
    if any(part is None for part in parts):
        return None
    rows = [row for part in parts for row in part or ()]
    return tuple(rows[i] for i in back.tolist())
