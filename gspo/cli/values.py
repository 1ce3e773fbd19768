"""`gspo values`: stage one of A*-PO, the optimal value of every training prompt under the model at hand."""

import json
import math
from pathlib import Path

import torch

from gspo.advantages import optimal_value
from gspo.collectors import GroupSource
from gspo.requirements import VALUE_COLUMN

WAVE = 64
"""Prompts sampled at once."""


def write_values(source: GroupSource, out: Path, beta: float, prompts: int) -> str:
    """Write the training rows with V* added, one JSON object per line, whole or not at all; returns a sentence."""
    number = min(prompts or len(source.rows), len(source.rows))
    partial, values = out.with_name(out.name + ".partial"), []
    with partial.open("w") as file:
        for start in range(0, number, WAVE):
            rows = [(i, source.rows[i]) for i in range(start, min(start + WAVE, number))]
            for (_, row), group in zip(rows, source.wave(rows, step=0).groups, strict=True):
                value = optimal_value(torch.tensor([r.reward for r in group.rollouts]), beta)
                if math.isnan(value):
                    raise ValueError(f"no completion of {row['prompt']!r:.60} could be scored; fix the reward first")
                values.append(value)
                file.write(json.dumps({**row, VALUE_COLUMN: round(value, 6)}, default=str) + "\n")
    partial.replace(out)
    mean = sum(values) / len(values)
    return f"{number} prompts x {source.group_size} completions: mean value {mean:.3f}, in {out}"
