"""The run folder: where everything of a run lies, and the Parquet files of rollouts and updates."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gspo.renderers import Renderer
from gspo.training.experts import changed_experts
from gspo.training.update import Update
from gspo.types import Group, Sample


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    config = property(lambda self: self.path / "config.toml")
    given = property(lambda self: self.path / "given.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    rollouts = property(lambda self: self.path / "rollouts")
    ledger = property(lambda self: self.path / "ledger")
    initial = property(lambda self: self.path / "initial")
    model = property(lambda self: self.path / "model")
    best = property(lambda self: self.path / "best")
    summary = property(lambda self: self.path / "summary.json")
    report = property(lambda self: self.path / "report.html")
    pairs = property(lambda self: self.path / "pairs")
    phase_reference = property(lambda self: self.path / "phase_reference")
    tensorboard = property(lambda self: self.path / "tensorboard")

    def prune(self, keep: int) -> None:
        """Drop all but the newest `keep` rollout and ledger files; 0 keeps all."""
        if keep:
            for folder in (self.rollouts, self.ledger):
                for old in sorted(folder.glob("step_*.parquet"))[:-keep]:
                    old.unlink()

    def drop_after(self, step: int) -> None:
        """Remove rollout and ledger files of steps that a resumed run will make again, and pairs found after it."""
        for file in self.pairs.glob("step_*.json"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()
        for folder in (self.rollouts, self.ledger):
            for file in folder.glob("step_*.parquet"):
                if int(file.stem.removeprefix("step_")) > step:
                    file.unlink()


def write_rollouts(
    folder: RunFolder,
    step: int,
    groups: Sequence[Group],
    names: Sequence[str],
    updates: Sequence[Update],
    samples: Sequence[Sample],
    renderer: Renderer,
) -> None:
    """One row per training sequence. `logprobs` and `entropy` are the policy's at the last update that trained the row;
    a row that skipped the network keeps its old log-probs and has no entropy. In a conversation `mask` says which
    completion ids the policy chose; it is null where that is all of them. `unit_advantage` is null where all units of a
    row have one advantage."""
    trained = _facts_by_sample(updates)
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    rows: list[dict[str, Any]] = []
    for sample in samples:
        group, rollout = rollouts[sample.rollout_id]
        completion = rollout.completion
        before = list(sample.sampler_logprobs)
        units = trained.get(_key(sample), UnitFacts(old=before, now=before))
        answer = group.columns.get("answer")
        is_whole = len(rollout.turns) == 1
        rows.append(
            {
                "step": step,
                "prompt_id": group.prompt_id,
                "group": rollout.group_id,
                "index": rollout.index,
                "part": sample.part,
                "prompt": group.prompt_text if is_whole else renderer.prompt_text(sample.prompt_ids),
                "completion": rollout.text if is_whole else renderer.text(sample.completion_ids),
                "prompt_ids": list(sample.prompt_ids),
                "completion_ids": list(sample.completion_ids),
                "mask": None if sample.mask is None else list(sample.mask),
                "tokens": renderer.pieces(sample.completion_ids),
                "sampler_logprobs": before,
                "old_logprobs": units.old,
                "logprobs": units.now,
                "reference_logprobs": units.reference,
                "entropy": units.entropy,
                "is_trained": sample.is_trained,
                "reward": rollout.reward,
                **{f"reward/{name}": value for name, value in zip(names, rollout.rewards, strict=True)},
                "advantage": sample.mean_advantage,
                "unit_advantage": list(sample.advantage) if isinstance(sample.advantage, tuple) else None,
                "finish_reason": completion.finish_reason,
                "ending": rollout.ending,
                "turns": len(rollout.turns),
                "policy_version": completion.policy_version,
                "answer": None if answer is None else str(answer),
            }
        )
    _write(folder.rollouts, step, rows)


def _key(sample: Sample) -> tuple[int, int]:
    return sample.rollout_id, sample.part


@dataclass(frozen=True, kw_only=True)
class UnitFacts:
    """What is known of one row's units."""

    old: list[float]
    now: list[float]
    reference: list[float] | None = None
    entropy: list[float] | None = None


def _facts_by_sample(updates: Sequence[Update]) -> dict[tuple[int, int], UnitFacts]:
    """(rollout, part) -> log-probs and entropy of its ids, at the last update that trained it."""
    found: dict[tuple[int, int], UnitFacts] = {}
    for update in updates:
        step, result = update.batch.step, update.result
        old = step.old_logprobs.cpu().numpy()
        reference = None if step.reference_logprobs is None else step.reference_logprobs.cpu().numpy()
        position = {row: i for i, row in enumerate(update.rows)}
        for row, sample in enumerate(update.batch.samples):
            length = len(sample.completion_ids)
            known = None if reference is None else reference[row, :length].tolist()
            before = old[row, :length].tolist()
            if result is None or row not in position:
                found.setdefault(_key(sample), UnitFacts(old=before, now=before, reference=known))
                continue
            now, entropy = (x[position[row], :length].tolist() for x in (result.logprobs, result.entropy))
            found[_key(sample)] = UnitFacts(old=before, now=now, reference=known, entropy=entropy)
    return found


SKIPPED = {"log_ratio": float("nan"), "bound": "none", "skipped": True}
"""Ledger facts of a sequence whose gradient was known to be 0 and which skipped the network."""


def write_ledger(folder: RunFolder, step: int, updates: Sequence[Update]) -> None:
    """One row per sequence per update: what its ratio was, which bound it hit, how hard it pulled.

    `bound` is that of a sequence ratio; token ratios have counts of clipped tokens instead. Of a mixture of experts,
    `changed_experts` is the share of the sequence's expert choices that are not those of the old log-probs.
    """
    rows: list[dict[str, Any]] = []
    has_tokens = any(u.result is not None and u.result.explanation.level == "token" for u in updates)
    skipped = {**SKIPPED, "clipped_low": 0, "clipped_high": 0} if has_tokens else SKIPPED
    for index, update in enumerate(updates):
        pull = np.zeros(len(update.batch.samples))
        facts: dict[int, dict[str, Any]] = {}
        if update.result is not None:
            pull[update.rows] = update.result.unit_gradient.abs().sum(dim=1).numpy()
            facts = _row_facts(update)
        total = max(pull.sum(), 1e-30)
        for row, sample in enumerate(update.batch.samples):
            rows.append(
                {
                    "step": step,
                    "update": index,
                    "group": sample.group_id,
                    "index": sample.index,
                    "length": sample.num_units,
                    "advantage": sample.mean_advantage,
                    "gradient_share": float(pull[row] / total),
                    **skipped,
                    **facts.get(row, {}),
                }
            )
    _write(folder.ledger, step, rows)


def _row_facts(update: Update) -> dict[int, dict[str, Any]]:
    assert update.result is not None
    step = update.batch.step.rows(update.rows)
    mask, why = step.mask.cpu(), update.result.explanation
    gap = (update.result.logprobs - step.old_logprobs.cpu()).masked_fill(~mask, 0.0).double()
    mean = gap.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    low = ((why.bound < 0) & mask).sum(dim=1).tolist()
    high = ((why.bound > 0) & mask).sum(dim=1).tolist()
    facts: dict[int, dict[str, Any]] = {}
    changed = changed_experts(update)
    for i, row in enumerate(update.rows):
        facts[row] = {"log_ratio": mean[i].item(), "bound": "none", "skipped": False}
        if changed is not None:
            facts[row]["changed_experts"] = float(changed[i].mean()) if changed[i].size else 0.0
        if why.level == "sequence":
            facts[row]["bound"] = "low" if low[i] else "high" if high[i] else "none"
        else:
            facts[row] |= {"clipped_low": low[i], "clipped_high": high[i]}
    return facts


def _write(folder: Path, step: int, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:06d}.parquet"
    partial = target.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(target)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, default=float))
    partial.replace(path)
