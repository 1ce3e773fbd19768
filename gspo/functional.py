"""The three functions for people with their own trainer: `weights`, `loss`, `advantages`.

weight = gspo.weights(gspo.GSPO(), mask)                      # once, on the whole optimizer step
for rows in micro_batches:
    out = gspo.loss(gspo.GSPO(), logprobs[rows], old_logprobs=old[rows], mask=mask[rows],
                    advantage=advantage[rows], weight=weight[rows])
    out.loss.backward()                                       # micro-batches add up to the step exactly
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo.advantages.base import AdvantageEstimator, AdvantageInput
from gspo.objectives.base import Composite, UnitObjective
from gspo.ratio import bounded
from gspo.types import Explanation, Need, Scores, Step

Terms = UnitObjective | Sequence[UnitObjective]
"""One objective, or several terms that add up: `(GSPO(), ReferenceKL(coef=1e-3))`."""


@dataclass(frozen=True)
class Loss:
    """What `loss` returns."""

    loss: Tensor
    """Scalar to minimise, differentiable, at least float32."""
    diagnostics: dict[str, float]
    """Detached numbers over the given rows; docs/metrics.md has the formulas."""


def as_terms(objective: Terms) -> tuple[UnitObjective, ...]:
    """Terms one by one; an objective that adds a term of its own (TRPA's KL) is followed by it."""
    given = tuple(objective) if isinstance(objective, Sequence) else (objective,)
    return tuple(part for term in given for part in (term, *(term.adds if isinstance(term, Composite) else ())))


def weights(
    objective: Terms,
    mask: Tensor,
    group: Tensor | None = None,
    rewards: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    length: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    old_entropy: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Weight of every unit, [B,T], computed once over the whole optimizer step before any forward pass.

    mask [B,T] bool: trained units. group, rewards, length [B] and old_logprobs, sampler_logprobs, old_entropy [B,T] are
    read by objectives and corrections that need them. Returns float64 (float32 on MPS); a tuple of them for several
    terms. Rows of it go with the same rows in `loss`, whatever the split; objectives over groups (AGRO, REBEL, TRPA,
    DPO, EGSW) need the rows of a group together.
    """
    terms = as_terms(objective)
    given = {"rewards": rewards, "sampler": sampler_logprobs, "old_entropy": old_entropy}
    _check_needs(terms, {"group": group, **given}, ("rewards", "sampler", "old_entropy"))
    step = _step(mask, None, old_logprobs, group, rewards, None, sampler_logprobs, length, old_entropy)
    made = tuple(term.weights(step, term.counts(step)) for term in terms)
    return made if isinstance(objective, Sequence) or len(made) > 1 else made[0]


def loss(
    objective: Terms,
    logprobs: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    mask: Tensor,
    advantage: Tensor | None = None,
    weight: Tensor | Sequence[Tensor] | None = None,
    group: Tensor | None = None,
    rewards: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    old_entropy: Tensor | None = None,
    length: Tensor | None = None,
) -> Loss:
    """Loss and diagnostics of some rows of an optimizer step.

    logprobs [B,T] carries the gradient; old_logprobs, reference_logprobs, sampler_logprobs, entropy, old_entropy
    [B,T]; advantage [B] or [B,T] (None for objectives on rewards alone); group, rewards, length [B]. `weight` is
    those rows of what `weights` returned for the whole step; None means that these rows are the whole step.
    `old_logprobs=None` means on-policy (ratio 1 with gradient). Whatever stands outside the mask, NaN included, has
    no influence. `sampler_logprobs` is read by corrections and otherwise only measured. Half precision is raised to
    float32; float64 stays.
    """
    _check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, reference_logprobs=reference_logprobs,
                  sampler_logprobs=sampler_logprobs, entropy=entropy, old_entropy=old_entropy)  # fmt: skip
    _check_rows(mask, advantage=advantage, group=group, rewards=rewards, length=length)
    terms = as_terms(objective)
    given = {"reference": reference_logprobs, "entropy": entropy, "entropy_gradient": entropy, "group": group}
    given |= {"rewards": rewards, "sampler": sampler_logprobs, "old_entropy": old_entropy, "advantage": advantage}
    _check_needs(terms, given)
    mask = mask.bool()
    scores = Scores(logprobs=clean(logprobs, mask), entropy=None if entropy is None else clean(entropy, mask))
    old = scores.logprobs.detach() if old_logprobs is None else old_logprobs
    step = _step(mask, advantage, old, group, rewards, reference_logprobs, sampler_logprobs, length,
                 old_entropy)  # fmt: skip
    if weight is None:
        weight = tuple(term.weights(step, term.counts(step)) for term in terms)
    elif isinstance(weight, Tensor):
        weight = (weight,)
    if len(weight) != len(terms):
        raise ValueError(
            f"{len(terms)} terms but {len(weight)} weights: pass what gspo.weights returned for these terms"
        )
    value = total_loss(terms, weight, scores, step)
    return Loss(loss=value, diagnostics={"loss": value.item(), **diagnose(terms, weight, scores, step)})


def advantages(
    estimator: AdvantageEstimator,
    rewards: Tensor,
    group: Tensor,
    length: Tensor | None = None,
    mask: Tensor | None = None,
    values: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    turn: Tensor | None = None,
    turn_rewards: Tensor | None = None,
) -> Tensor:
    """Advantages [B] of a whole rollout batch; [B,T] from an estimator per token.

    rewards [B], or [B,K] (the columns are summed unless the estimator treats them apart); NaN marks a missing
    reward: it leaves its group's statistics and gets advantage 0. group [B] int. length [B] defaults to the mask's
    row sums, or 1. values [B], mask, old_logprobs and reference_logprobs [B,T], turn [B,T] (of each token, from 0)
    and turn_rewards [B, turns] are read by estimators that need them.
    Stateful estimators are refused: pass them to `gspo.train`.
    """
    if estimator.traits.is_stateful:
        raise ValueError(
            f"advantage estimator {estimator.name!r} carries state between steps; use it in gspo.train(...)"
        )
    if group.shape != rewards.shape[:1]:
        raise ValueError(f"rewards have {rewards.shape[0]} rows but group has shape {tuple(group.shape)}; need [B]")
    turns = None if turn is None or turn_rewards is None else turn
    given = {"mask": mask, "values": values, "reference": reference_logprobs, "turns": turns}
    missing = [need for need in estimator.traits.needs if given[need] is None]
    if missing:
        raise ValueError(f"advantage estimator {estimator.name!r} needs {' and '.join(missing)}")
    columns = rewards if rewards.ndim == 2 else rewards[:, None]
    if length is None:
        length = mask.sum(dim=1) if mask is not None else torch.ones_like(group)
    batch = AdvantageInput(
        rewards=columns,
        total=columns.sum(dim=1),
        group=group,
        length=length,
        mask=mask,
        values=values,
        old_logprobs=old_logprobs,
        reference_logprobs=reference_logprobs,
        turn=turn,
        turn_rewards=turn_rewards,
    )
    return estimator(batch, None)[0]


def clean(value: Tensor, mask: Tensor) -> Tensor:
    """At least float32, and 0 outside the mask in value and gradient (so NaN there is inert)."""
    value = value if value.dtype in (torch.float32, torch.float64) else value.float()
    return torch.where(mask, value, torch.zeros((), dtype=value.dtype, device=value.device))


def total_loss(terms: Sequence[UnitObjective], weight: Sequence[Tensor], scores: Scores, step: Step) -> Tensor:
    """-(gain * weight) summed over units and terms: the only place where a loss is added up."""
    parts = []
    for term, unit_weight in zip(terms, weight, strict=True):
        gain = term.gain(scores, step)
        parts.append(-(clean(gain, step.mask) * unit_weight.to(gain.dtype)).sum())
    return torch.stack(parts).sum()


def explain(terms: Sequence[UnitObjective], scores: Scores, step: Step) -> Explanation:
    """The explanation of the first term that has one; detached."""
    detached = Scores(
        logprobs=scores.logprobs.detach(), entropy=None if scores.entropy is None else scores.entropy.detach()
    )
    for term in terms:
        explanation = term.explain(detached, step)
        if explanation is not None:
            return explanation
    zeros = torch.zeros_like(detached.logprobs)
    return Explanation(log_ratio=zeros, bound=zeros.long(), level="token")


def diagnose(terms: Sequence[UnitObjective], weight: Sequence[Tensor], scores: Scores, step: Step) -> dict[str, float]:
    """Numbers over these rows; `clip_ratio/*` is per sequence for sequence ratios, per unit for token ratios."""
    mask, why = step.mask, explain(terms, scores, step)
    if why.level == "sequence":
        first, live = mask.long().argmax(dim=1, keepdim=True), mask.any(dim=1)
        bound, log_ratio = (x.gather(1, first)[:, 0][live] for x in (why.bound, why.log_ratio))
    else:
        bound, log_ratio = why.bound[mask], why.log_ratio[mask]
    number = max(bound.numel(), 1)
    ratio = bounded(log_ratio, 80.0).exp() if log_ratio.numel() else log_ratio.new_ones(1)
    out = {
        "clip_ratio/low_mean": (bound < 0).sum().item() / number,
        "clip_ratio/high_mean": (bound > 0).sum().item() / number,
        "clip_ratio/region_mean": (bound != 0).sum().item() / number,
        "clip/token_share": (why.bound[mask] != 0).sum().item() / max(int(mask.sum()), 1),
        "ratio/mean": ratio.mean().item(),
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
    }
    token_mean = lambda x: x[mask].double().mean().item() if mask.any() else 0.0  # noqa: E731
    if scores.entropy is not None:
        out["entropy"] = token_mean(scores.entropy.detach())
    if step.reference_logprobs is not None:
        u = step.reference_logprobs - scores.logprobs.detach()
        out["kl"] = token_mean(torch.expm1(u) - u)
    if step.sampler_logprobs is not None:
        gap = (step.old_logprobs - step.sampler_logprobs).abs()
        out["mismatch/mean"] = token_mean(gap)
        out["mismatch/max"] = gap[mask].max().item() if mask.any() else 0.0
    return out


def _step(
    mask: Tensor,
    advantage: Tensor | None,
    old_logprobs: Tensor | None,
    group: Tensor | None,
    rewards: Tensor | None,
    reference_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    length: Tensor | None,
    old_entropy: Tensor | None = None,
) -> Step:
    mask = mask.bool()
    rows = torch.arange(mask.shape[0], device=mask.device)
    tidy = lambda x: None if x is None else clean(x, mask).detach()  # noqa: E731
    return Step(
        mask=mask,
        advantage=_tidy_advantage(mask, advantage),
        old_logprobs=torch.zeros(mask.shape, device=mask.device) if old_logprobs is None else tidy(old_logprobs),
        length=mask.sum(dim=1) if length is None else length,
        group=rows if group is None else group,
        rollout=rows,
        rewards=rewards,
        reference_logprobs=tidy(reference_logprobs),
        sampler_logprobs=tidy(sampler_logprobs),
        old_entropy=tidy(old_entropy),
    )


def _tidy_advantage(mask: Tensor, advantage: Tensor | None) -> Tensor:
    if advantage is None:
        return torch.zeros(mask.shape[0], device=mask.device)
    return (clean(advantage, mask) if advantage.ndim == 2 else clean(advantage, mask.any(dim=1))).detach()


def _check_shapes(mask: Tensor, **tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        if value is not None and value.shape != mask.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, mask {tuple(mask.shape)}; both must be [B,T]")


def _check_rows(mask: Tensor, **tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        if value is None or value.shape == mask.shape[:1] or (name == "advantage" and value.shape == mask.shape):
            continue
        shapes = "[B] or [B,T]" if name == "advantage" else "[B]"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; with mask {tuple(mask.shape)} it must be {shapes}")


ARGUMENTS = {
    "reference": "reference_logprobs [B,T]",
    "entropy": "entropy [B,T] of the policy",
    "entropy_gradient": "entropy [B,T] of the policy (with gradient)",
    "rewards": "rewards [B]",
    "sampler": "sampler_logprobs [B,T]",
    "old_entropy": "old_entropy [B,T]",
}
"""What an objective's need is called where it is passed."""


def _check_needs(
    terms: Sequence[UnitObjective], given: dict[str, Tensor | None], only: Sequence[Need] | None = None
) -> None:
    for term in terms:
        for need in term.traits.needs:
            if need != "old" and (only is None or need in only) and given[need] is None:
                raise ValueError(f"{term.name} needs {ARGUMENTS[need]}")
        if term.traits.keeps_groups_whole and given["group"] is None:
            raise ValueError(f"{term.name} compares the rows of a group: it needs group [B]")
        if only is None and term.traits.reads_advantage and given["advantage"] is None:
            raise ValueError(f"{term.name} needs advantage [B]")
