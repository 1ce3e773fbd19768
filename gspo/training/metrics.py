"""The numbers of one step, from its groups and updates. docs/metrics.md has every formula; nothing reads them back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gspo.collectors.base import Collected, shown
from gspo.collectors.refill import has_spread
from gspo.objectives.adaptive_entropy import AdaptiveEntropy
from gspo.objectives.base import UnitObjective
from gspo.objectives.corrected import Corrected
from gspo.training.update import Update
from gspo.types import Group, Scores

Metrics = dict[str, float]


def rollout_metrics(collected: Collected, names: Sequence[str], advantage: Sequence[float]) -> Metrics:
    """Rewards, lengths and failures of a rollout batch; `advantage` is one per training sequence."""
    groups = collected.groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    total = np.array([r.reward for r in rollouts])
    scored = total[~np.isnan(total)]
    out: Metrics = {
        "reward": _mean(scored),
        "reward_std": _mean([_std(group) for group in groups]),
        "frac_reward_zero_std": _mean([not has_spread(group) for group in groups]),
        "reward/errors": float(sum(s in ("error", "timeout", "nan") for r in rollouts for s in r.statuses)),
        "advantage/abs_mean": _mean(np.abs(advantage)),
        "collect/prompts_drawn": float(collected.prompts_drawn),
        **completion_metrics(collected),
    }
    parts = np.array([r.rewards for r in rollouts])
    for k, name in enumerate(names):
        column = parts[:, k][~np.isnan(parts[:, k])]
        out[f"rewards/{name}/mean"] = _mean(column)
        out[f"rewards/{name}/std"] = float(column.std()) if len(column) else 0.0
        out[f"rewards/{name}/failed"] = float(sum(r.statuses[k] in ("error", "timeout", "nan") for r in rollouts))
    return out


def completion_metrics(collected: Collected) -> Metrics:
    """Lengths, and what the collector counted."""
    rollouts = [rollout for group in collected.groups for rollout in group.rollouts]
    lengths = np.array([len(r.completion.ids) for r in rollouts])
    ended = lengths[[r.completion.finish_reason == "stop" for r in rollouts]]
    return {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "completions/mean_terminated_length": _mean(ended),
        **shown(collected.facts),
    }


def preference_metrics(updates: Sequence[Update]) -> Metrics:
    """Of the best and the worst row of each group, at the update that trained them: their log-ratios, which is greater.

    The log-ratio is summed over tokens, against the reference where there is one, else against the policy as it was
    when the step began.
    """
    chosen, rejected = [], []
    for u in (u for u in updates if u.result is not None):
        step = u.batch.step.rows(u.rows)
        mask, rewards, group = step.mask.cpu(), step.rewards.cpu().numpy(), step.group.cpu().numpy()
        gap = (u.result.logprobs - step.old_logprobs.cpu()).masked_fill(~mask, 0.0).double().sum(dim=1).numpy()
        for number in np.unique(group):
            rows = np.flatnonzero(group == number)
            chosen.append(gap[rows[rewards[rows].argmax()]])
            rejected.append(gap[rows[rewards[rows].argmin()]])
    margin = np.array(chosen) - np.array(rejected)
    return {
        "preference/accuracy": _mean(margin > 0),
        "preference/margin": _mean(margin),
        "preference/chosen": _mean(chosen),
        "preference/rejected": _mean(rejected),
    }


def update_metrics(updates: Sequence[Update]) -> Metrics:
    """Clip fractions, ratios, entropy, gradient norm. Sums over the updates divided by sums, never means of means."""
    done = [u for u in updates if u.result is not None]
    out: Metrics = {
        "grad_norm": _mean([u.grad_norm for u in done]),
        "lr": updates[-1].lr,
        "loss": _mean([u.result.loss for u in done]),
        "updates/rows_share": sum(len(u.rows) for u in updates) / sum(len(u.batch.samples) for u in updates),
    }
    if not done:
        return out
    per_update = [_bounds(u) for u in done]
    every = np.concatenate(per_update)
    out["clip_ratio/low_mean"] = _mean(every < 0)
    out["clip_ratio/high_mean"] = _mean(every > 0)
    out["clip_ratio/region_mean"] = _mean(every != 0)
    for index, u in enumerate(updates):
        if u.result is not None:
            out[f"clip_ratio/update_{index}"] = _mean(_bounds(u) != 0)
    masks = [u.batch.step.rows(u.rows).mask.cpu() for u in done]
    join = lambda name: torch.cat([getattr(u.result, name)[m] for u, m in zip(done, masks, strict=True)])  # noqa: E731
    bound = torch.cat([u.result.explanation.bound[m] for u, m in zip(done, masks, strict=True)])
    out["clip/token_share"] = (bound != 0).double().mean().item()
    out["entropy"] = join("entropy").double().mean().item()
    old = torch.cat([u.batch.step.rows(u.rows).old_logprobs.cpu()[m] for u, m in zip(done, masks, strict=True)])
    token = (join("logprobs") - old).double()
    out["ratio/token/std"] = token.exp().std(correction=0).item()
    sequence = np.exp(np.concatenate([_sequence_log_ratio(u) for u in done]))
    out["ratio/seq/mean"] = float(sequence.mean())
    out["ratio/seq/std"] = float(sequence.std())
    for share in (1, 50, 99):
        out[f"ratio/seq/p{share:02d}"] = float(np.quantile(sequence, share / 100))
    out |= _kl(done, masks)
    return out


def term_metrics(terms: Sequence[UnitObjective], updates: Sequence[Update], states: Sequence[Any]) -> Metrics:
    """What corrections kept, and where the states of adaptive terms stand after the step."""
    out: Metrics = {}
    for term, state in zip(terms, states, strict=True):
        if isinstance(term, AdaptiveEntropy):
            out["adaptive_entropy/coef"] = state[0]
        if isinstance(term, Corrected):
            made = [_corrections(term, u) for u in updates if u.result is not None]
            for name in made[0] if made else ():
                out[f"correction/{name}/kept"] = _mean([facts[name][0] for facts in made])
                out[f"correction/{name}/mean_weight"] = _mean([facts[name][1] for facts in made])
    return out


def _corrections(term: Corrected, u: Update) -> dict[str, tuple[float, float]]:
    """Kept share and mean weight over the update's trained units, by correction."""
    assert u.result is not None
    step = u.batch.step
    part = step.rows(u.rows)
    scores = Scores(logprobs=u.result.logprobs.to(part.mask.device))
    found = {}
    for rows, made in ((step, term.stored(step)), (part, term.current(part, scores))):
        for name, correction in made.items():
            weight = correction.weight.expand_as(rows.mask)[rows.mask]
            found[name] = (correction.kept, _mean(weight.double().cpu().numpy()))
    return found


def _bounds(u: Update) -> np.ndarray:
    """Bounds hit: one entry per trained sequence for sequence ratios, one per trained token for token ratios."""
    assert u.result is not None
    why, mask = u.result.explanation, u.batch.step.rows(u.rows).mask.cpu()
    if why.level == "sequence":
        return why.bound.gather(1, mask.long().argmax(dim=1, keepdim=True))[:, 0].numpy()
    return why.bound[mask].numpy()


def _sequence_log_ratio(u: Update) -> np.ndarray:
    """[rows] mean log-ratio per sequence, whatever the objective's own level."""
    assert u.result is not None
    step = u.batch.step.rows(u.rows)
    mask = step.mask.cpu()
    gap = (u.result.logprobs - step.old_logprobs.cpu()).masked_fill(~mask, 0.0).double()
    return (gap.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).numpy()


def _kl(done: Sequence[Update], masks: Sequence[torch.Tensor]) -> Metrics:
    total, units = 0.0, 0
    for u, mask in zip(done, masks, strict=True):
        reference = u.batch.step.rows(u.rows).reference_logprobs
        if reference is None:
            return {}
        gap = (reference.cpu() - u.result.logprobs)[mask].double()
        total += (torch.expm1(gap) - gap).sum().item()
        units += int(mask.sum())
    return {"kl": total / max(units, 1)}


def _mean(values: object) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else 0.0


def _std(group: Group) -> float:
    scored = [r.reward for r in group.rollouts if not math.isnan(r.reward)]
    return float(np.std(scored, ddof=1)) if len(scored) > 1 else 0.0
