"""Small runs that take a second or two, and how two of them are compared."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gspo.config import RunConfig
from gspo.settings import apply_overrides, validate

SETTINGS = {
    "name": "small",
    "model": "tiny",
    "tiny": {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 64},
    "steps": 4,
    "prompts_per_step": 4,
    "group_size": 4,
    "updates_per_step": 2,
    "objective": "gspo",
    "sampling": {"max_completion_tokens": 4},
    # A random model is never right about sums; it is sometimes short, so there is something to learn.
    "rewards": [{"name": "length", "options": {"target_tokens": 2}}],
    "optimizer": {"lr": 1e-3},
    "evaluation": {"every": 2, "prompts": 8},
    "checkpoints": {"every": 1},
    "trackers": [],
}


def settings(folder: Path, *overrides: tuple) -> RunConfig:
    return validate(apply_overrides({**SETTINGS, "folder": str(folder)}, overrides))


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    is_timing = lambda key: key.startswith("time/") or key in ("step_time", "tokens_per_second")  # noqa: E731
    return [{key: value for key, value in line.items() if not is_timing(key)} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_run(a: Path, b: Path) -> None:
    """Metrics equal to the last digit, weights to the last bit, the same files."""
    assert metrics(a) == metrics(b)
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    names = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.glob("*/step_*.parquet"))  # noqa: E731
    assert names(a) == names(b)
