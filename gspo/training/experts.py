"""Mixture of experts: how many expert choices an update changed, and what that does to the ratios. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gspo.policies.routing import Routes, expert_shares
from gspo.training.update import Update

Metrics = dict[str, float]


def changed_experts(update: Update) -> list[np.ndarray] | None:
    """For each row that went through the network, [units,layers]: the share of the k experts of the token that predicts
    the unit which are not those of the old log-probs (under R2 and R3: would not be, had the routers been free).

    None where nothing was recorded.
    """
    old, result = update.batch.step.payload.replay, update.result
    now = None if result is None else result.replay
    if old is None or now is None:
        return None
    payload, mask = update.batch.step.payload, update.batch.step.mask.cpu().numpy()
    found = []
    for row, chosen in zip(update.rows, now, strict=True):
        before = old[row]
        if not isinstance(before, Routes) or not isinstance(chosen, Routes):
            return None
        predicts = len(payload.prompt[row]) - 1 + np.flatnonzero(mask[row])
        found.append(share_changed(before.experts[predicts], chosen.experts[predicts]))
    return found


def share_changed(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """[T,layers,k] twice -> [T,layers]; the order of the k does not matter."""
    return 1.0 - (now[..., :, None] == before[..., None, :]).any(axis=-1).mean(axis=-1)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The units of one update: what changed for each, and how far its log-prob moved."""

    changed: np.ndarray
    """[N,layers]"""
    log_ratio: np.ndarray
    """[N] of the token."""
    row: np.ndarray
    """[N] number of its sequence."""


def compared(update: Update) -> Compared | None:
    changed = changed_experts(update)
    if changed is None or update.result is None or not sum(map(len, changed)):
        return None
    step = update.batch.step.rows(update.rows)
    mask = step.mask.cpu()
    gap = (update.result.logprobs - step.old_logprobs.cpu())[mask].double().numpy()
    row = np.repeat(np.arange(len(changed)), [len(part) for part in changed])
    return Compared(changed=np.concatenate(changed), log_ratio=gap, row=row)


def expert_metrics(updates: Sequence[Update]) -> Metrics:
    """Shares over the updates behind the first, which starts from the old policy; over that one where it is alone."""
    found = {index: part for index, update in enumerate(updates) if (part := compared(update)) is not None}
    if not found:
        return {}
    out: Metrics = {f"experts/changed/update_{index}": float(part.changed.mean()) for index, part in found.items()}
    behind = [part for index, part in found.items() if index > 0] or list(found.values())
    changed = np.concatenate([part.changed for part in behind])
    log_ratio = np.concatenate([part.log_ratio for part in behind])
    out["experts/changed"] = float(changed.mean())
    out["experts/changed_tokens"] = float((changed > 0).any(axis=1).mean())
    out |= {f"experts/changed/layer_{i}": float(share) for i, share in enumerate(changed.mean(axis=0))}
    out |= _gaps("token", np.abs(log_ratio), (changed > 0).any(axis=1))
    shares, gaps = (np.concatenate(parts) for parts in zip(*map(_sequences, behind), strict=True))
    out |= _gaps("seq", np.abs(gaps), shares > np.median(shares))
    records = [record for u in updates if u.result is not None and u.result.replay for record in u.result.replay]
    even = expert_shares(records)
    out["experts/balance"] = float(even.shape[1] * np.square(even).sum(axis=1).mean())
    return out


def _sequences(part: Compared) -> tuple[np.ndarray, np.ndarray]:
    """By sequence: share of changed choices, mean log-ratio."""
    rows, row = np.unique(part.row, return_inverse=True)
    mean = lambda values: np.bincount(row, weights=values, minlength=len(rows)) / np.bincount(row)  # noqa: E731
    return mean(part.changed.mean(axis=1)), mean(part.log_ratio)


def _gaps(level: str, gap: np.ndarray, is_changed: np.ndarray) -> Metrics:
    """Mean |log-ratio| where choices changed (more), and where they did not; nothing where one side is empty."""
    if is_changed.all() or not is_changed.any():
        return {}
    return {
        f"experts/{level}_gap/changed": float(gap[is_changed].mean()),
        f"experts/{level}_gap/same": float(gap[~is_changed].mean()),
    }
