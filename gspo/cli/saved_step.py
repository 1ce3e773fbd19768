"""A saved rollout batch as the tensors of one step: what `what-if` and `why-clipped` look at."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from gspo.config import RunConfig
from gspo.objectives import Objective
from gspo.settings import read_recipe, validate
from gspo.training.folder import RunFolder
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """Rows of `rollouts/step_N.parquet`, and the same rows as tensors in float64."""

    number: int
    config: RunConfig
    rows: list[dict[str, Any]]
    step: Step
    scores: Scores
    """The policy's log-probs and entropies at the update that trained each row."""
    has_entropy: bool
    objective: Objective | None
    """The run's own; None where it was an object given from Python, which settings do not hold."""


def saved_steps(folder: RunFolder) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in folder.rollouts.glob("step_*.parquet"))


def read_saved_step(path: Path, number: int) -> SavedStep:
    """Raises ValueError where the run or the step's file is missing, naming the steps that there are."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} is not a run folder: it has no config.toml")
    file = folder.rollouts / f"step_{number:06d}.parquet"
    if not file.is_file():
        found = saved_steps(folder)
        kept = ", ".join(map(str, found))
        if len(found) >= 20:
            nearest = min(found, key=lambda step: abs(step - number))
            kept = f"{len(found)} from {found[0]} to {found[-1]}, the nearest is {nearest}"
        raise ValueError(f"step {number} of {path} was not saved; there are: {kept or 'none'}")
    rows = pq.read_table(file).to_pylist()
    config = validate(read_recipe(folder.config), str(folder.config))
    given = json.loads(folder.given.read_text()) if folder.given.is_file() else []
    return SavedStep(
        number=number,
        config=config,
        rows=rows,
        step=_step(rows),
        scores=Scores(logprobs=_padded(rows, "logprobs"), entropy=_padded(rows, "entropy")),
        objective=None if "objective" in given else config.objective,
        has_entropy=any(row.get("entropy") is not None for row in rows),
    )


def _step(rows: list[dict[str, Any]]) -> Step:
    lengths = np.array([len(row["completion_ids"]) for row in rows])
    trained = np.array([row.get("is_trained", True) for row in rows])
    mask = torch.as_tensor((np.arange(lengths.max())[None] < lengths[:, None]) & trained[:, None])
    for i, row in enumerate(rows):
        if row.get("mask") is not None:  # a conversation: what the environment said is no unit
            mask[i, : lengths[i]] &= torch.tensor(row["mask"])
    has_reference = all(row.get("reference_logprobs") is not None for row in rows)
    tensor = lambda name: torch.tensor([row[name] for row in rows], dtype=torch.float64)  # noqa: E731
    return Step(
        mask=mask,
        advantage=_advantages(rows),
        old_logprobs=_padded(rows, "old_logprobs"),
        length=mask.sum(dim=1),
        group=torch.tensor([row["group"] for row in rows]),
        rollout=_rollouts(rows),
        rewards=tensor("reward"),
        reference_logprobs=_padded(rows, "reference_logprobs") if has_reference else None,
        sampler_logprobs=_padded(rows, "sampler_logprobs"),
    )


def _advantages(rows: list[dict[str, Any]]) -> torch.Tensor:
    """[B], or [B,U] where the run had one per unit."""
    if any(row.get("unit_advantage") is not None for row in rows):
        return _padded(rows, "unit_advantage")
    return torch.tensor([row["advantage"] for row in rows], dtype=torch.float64)


def _rollouts(rows: list[dict[str, Any]]) -> torch.Tensor:
    """[B] number of the rollout of each row; parts of one follow each other."""
    return torch.tensor([row.get("part", 0) == 0 for row in rows]).cumsum(dim=0) - 1


def _padded(rows: list[dict[str, Any]], name: str) -> torch.Tensor:
    """[B,U] of a column of lists; 0 where a row has none."""
    width = max(len(row["completion_ids"]) for row in rows)
    out = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        values = row.get(name) or []
        out[i, : len(values)] = values
    return torch.as_tensor(out)
