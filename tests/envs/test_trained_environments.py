"""A step of training through a real environment of every library, by a model that says anything."""

import json
import math

import pytest
import torch
from byte_model import byte_model
from real_environments import REAL_FACTORIES

import gspo


def short(completions, **columns):
    """Spread, where the environment's own reward has none yet."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [-len(text) / 10 for text in texts]


@pytest.mark.parametrize("name", REAL_FACTORIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_step_through(name, tmp_path):
    factory, rows, _ = REAL_FACTORIES[name]()
    torch.manual_seed(0)
    model, tokenizer = byte_model()
    run = gspo.train(
        model,
        rows if len(rows) > 1 else rows * 2,
        short,
        tokenizer=tokenizer,
        environment=factory,
        folder=str(tmp_path / "run"),
        steps=1,
        prompts_per_step=2,
        group_size=3,
        updates_per_step=1,
        sampling={"max_completion_tokens": 12},
        evaluation={"every": 0, "prompts": 0},
        trackers=(),
    )
    _, line = (json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines())
    assert line["environment/failed"] == 0 and line["environment/turns"] >= 1
    assert line["grad_norm"] > 0 and math.isfinite(line["loss"])
    ends = sum(value for key, value in line.items() if key.startswith("environment/ended/"))
    assert ends == pytest.approx(1.0)
