"""One rollout batch becomes optimizer updates: old log-probs chosen, weights counted, gradients taken."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gspo.functional import explain
from gspo.objectives.base import Stateful, UnitObjective
from gspo.policies.base import Policy, StepResult
from gspo.policies.trained import Scorer
from gspo.training.batch import (
    MiniBatch,
    with_old_entropy,
    with_old_from_forward,
    with_old_logprobs,
    with_reference,
    with_replay,
)
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer update did. `rows` are the positions in `batch` that went through the network."""

    batch: MiniBatch
    rows: list[int]
    result: StepResult | None
    """None when no row of the mini-batch had a gradient; then the optimizer did not move either."""
    grad_norm: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Sampler against policy at equal weights: log-prob differences, and spread of the objective's log-ratio."""

    mean: float
    max: float
    ratio_std: float
    band: float
    """How far the log-ratio may be from 0 before the objective acts on it; infinity where it never does."""


def measure_mismatch(terms: Sequence[UnitObjective], step: Step, logprobs: Tensor) -> Mismatch:
    """`logprobs` [B,U] come from the policy, before an update has moved it."""
    assert step.sampler_logprobs is not None
    step = replace(step, old_logprobs=step.sampler_logprobs)
    why = explain([term for term in terms if "old" in term.traits.needs], Scores(logprobs=logprobs), step)
    mask = step.mask
    gap = (logprobs - step.old_logprobs)[mask].abs()
    if gap.numel() == 0:
        return Mismatch(mean=0.0, max=0.0, ratio_std=0.0, band=why.band)
    ratio = _per_sequence(why, mask) if why.level == "sequence" else why.log_ratio[mask]
    # Around 0, not around its own mean: a common shift leaves the clip band too.
    return Mismatch(
        mean=gap.double().mean().item(),
        max=gap.max().item(),
        ratio_std=ratio.double().square().mean().sqrt().item(),
        band=why.band,
    )


def _per_sequence(why: Explanation, mask: Tensor) -> Tensor:
    live = mask.any(dim=1)
    return why.log_ratio.gather(1, mask.long().argmax(dim=1, keepdim=True))[live, 0]


def is_sampler_sound(mismatch: Mismatch) -> bool:
    """Whether the sampler's log-probs may be the ratio's denominator: noise under a third of the objective's band."""
    return mismatch.ratio_std < mismatch.band / 3


def prepare(
    batches: Sequence[MiniBatch],
    policy: Policy,
    terms: Sequence[UnitObjective],
    reference: Scorer | None,
    rescore_old: bool,
    first_scores_itself: bool = False,
) -> list[MiniBatch]:
    """Old and reference log-probs in place, before the first update moves the weights.

    The policy scores just the rows that training will send through the network, so that both passes have the same
    micro-batches and the ratio of the first update is 1 to the bit, in bf16 too. With `first_scores_itself` the first
    mini-batch is left out: its update's forward pass runs on these same weights. Where no term divides by old
    log-probs, and nobody knows the sampler's, the reference's stand in for them in the metrics.
    """
    divides = any("old" in term.traits.needs for term in terms)
    ready = []
    for number, batch in enumerate(batches):
        rows = live_rows(batch.step, terms)
        if rescore_old and rows and divides:
            if first_scores_itself and number == 0:
                batch = with_old_from_forward(batch)
            else:
                scores = policy.logprobs(batch.step.rows(rows))
                batch = _with_old(batch, rows, scores.logprobs, scores.replay)
        if any("old_entropy" in term.traits.needs for term in terms):
            entropy = policy.logprobs(batch.step).entropy  # of every row: quantiles are over the whole step
            batch = with_old_entropy(batch, entropy)
        if reference is not None and any("reference" in term.traits.needs for term in terms):
            batch = with_reference(batch, reference.logprobs(batch.step).logprobs)
            if rescore_old and not divides:
                batch = with_old_logprobs(batch, batch.step.reference_logprobs)
        ready.append(batch)
    return ready


def _with_old(batch: MiniBatch, rows: Sequence[int], logprobs: Tensor, replay: tuple[Any, ...] | None) -> MiniBatch:
    """With old log-probs of some rows, and what scoring them recorded."""
    old = batch.step.old_logprobs.clone()
    old[rows] = logprobs.to(old)
    return with_replay(with_old_logprobs(batch, old), rows, replay)


def drawn_anew(batches: Sequence[MiniBatch], epochs: int, *counters: int) -> list[MiniBatch]:
    """The mini-batches of every epoch, each with random draws of its own, named by counters.

    For a likelihood that is estimated: old, reference and current log-probs of an update share its draws, so that their
    ratio compares policies and not draws.
    """
    return [
        replace(batch, step=replace(batch.step, payload=batch.step.payload.with_draw(*counters, epoch, number)))
        for epoch in range(epochs)
        for number, batch in enumerate(batches)
    ]


def live_rows(step: Step, terms: Sequence[UnitObjective]) -> list[int]:
    """Rows whose gradient is not known to be 0: trained, and of non-zero advantage where that settles it.

    An objective that compares the rows of a group keeps every trained row of a group with any such advantage.
    """
    live = step.mask.any(dim=1)
    if all(term.traits.skips_zero_advantage for term in terms):
        pulls = live & (step.advantage != 0).reshape(len(live), -1).any(dim=1)
        if any(term.traits.keeps_groups_whole for term in terms):
            pulls = torch.isin(step.group, step.group[pulls])
        live = live & pulls
    return live.nonzero()[:, 0].tolist()


def update(policy: Policy, batch: MiniBatch, terms: Sequence[UnitObjective], lr: float) -> Update:
    """Weights over the whole mini-batch first, then forward and backward of its live rows, then one step."""
    step = batch.step
    weights = [term.weights(step, term.counts(step)) for term in terms]
    rows = live_rows(step, terms)
    if not rows:
        return Update(batch=batch, rows=rows, result=None, grad_norm=0.0, lr=lr)
    result = policy.forward_backward(step.rows(rows), [weight[rows] for weight in weights], terms)
    if step.old_from_forward:
        batch = _with_old(batch, rows, result.logprobs, result.replay)
    return Update(batch=batch, rows=rows, result=result, grad_norm=policy.optim_step(lr), lr=lr)


def run_updates(
    policy: Policy,
    batches: Sequence[MiniBatch],
    terms: Sequence[UnitObjective],
    epochs: int,
    rates: Sequence[float],
    states: Sequence[Any] = (),
) -> tuple[list[Update], list[Any]]:
    """`epochs` passes over the mini-batches, one optimizer update each, with the learning rates `rates`.

    `states` are those of the terms (None for a term without); they move after each update by its own sums.
    """
    now, batches = list(states) or initial_states(terms), list(batches)
    done = []
    for number, lr in zip([number for _ in range(epochs) for number in range(len(batches))], rates, strict=True):
        done.append(update(policy, batches[number], at_states(terms, now), lr))
        batches[number] = done[-1].batch  # a later epoch divides by what the first one found
        totals = _totals(done[-1])
        now = [
            term.update(state, totals) if isinstance(term, Stateful) else state
            for term, state in zip(terms, now, strict=True)
        ]
    return done, now


def initial_states(terms: Sequence[UnitObjective]) -> list[Any]:
    return [term.init() if isinstance(term, Stateful) else None for term in terms]


def at_states(terms: Sequence[UnitObjective], states: Sequence[Any]) -> list[UnitObjective]:
    """The terms of one update."""
    return [term.at(state) if isinstance(term, Stateful) else term for term, state in zip(terms, states, strict=True)]


def _totals(done: Update) -> dict[str, float]:
    """Sums over the update's rows that a term's state may move by."""
    if done.result is None:
        return {"units": 0.0, "entropy": 0.0}
    mask = done.batch.step.rows(done.rows).mask.cpu()
    return {"units": float(mask.sum()), "entropy": done.result.entropy[mask].double().sum().item()}


def first_forward(updates: Sequence[Update], terms: Sequence[UnitObjective]) -> Mismatch | None:
    """The mismatch as the first update saw it, with the weights unmoved; None if nothing went forward."""
    first = updates[0]
    if first.result is None:
        return None
    step = first.batch.step.rows(first.rows)
    return measure_mismatch(terms, step, first.result.logprobs.to(step.mask.device))
