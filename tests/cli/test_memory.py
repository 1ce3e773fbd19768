"""The memory estimate of `gspo plan`: what it counts, and that real runs peak where it says."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gspo.cli.memory import estimate, memory_table, model_configuration, read_model
from gspo.objectives import ReferenceKL
from gspo.settings import load_config

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ["--steps", "1", "--threads", "1", "--evaluation.every", "0", "--evaluation.prompts", "0"]


def peaks(words):
    config = load_config(RECIPES / words[0], words[1:])
    return estimate(config, read_model(config, model_configuration(config)))


def count(**changes):
    words = ["addition.toml", *(word for k, v in changes.items() for word in (f"--{k}", json.dumps(v)))]
    return peaks(words)


def test_bytes_that_can_be_counted_by_hand():
    config = load_config(RECIPES / "addition.toml", [])
    model = read_model(config, model_configuration(config))
    parts, _ = estimate(config, model)
    width, inner, vocabulary = 128, 384, 17
    layer = 4 * width**2 + 3 * width * inner + 2 * width + 2 * 32
    assert model.parameters == model.trainable == 4 * layer + vocabulary * width + width
    assert parts["weights (float32)"] == parts["gradients (float32)"] == 4 * model.parameters
    assert parts["AdamW moments (float32)"] == 8 * model.parameters
    assert parts["float32 master weights"] == parts["reference weights"] == 0
    # Norms: residual, normalised, output; q and k are normalised and kept again after rotation; the rest is products.
    by_hand = 4 * (2 * 3 * width + 2 * width + 2 * 2 * width + 2 * width + width + 4 * inner)
    assert 0.8 < model.kept_by_layer / by_hand < 1.2


def test_settings_move_the_parts_they_should():
    base, (training, _) = count()
    assert count(dtype="bfloat16")[0]["float32 master weights"] == base["weights (float32)"]
    assert count(checkpoint_activations=True)[1][0] < training
    assert count(**{"lora.rank": 4})[0]["AdamW moments (float32)"] < base["AdamW moments (float32)"] / 2
    config = replace(load_config(RECIPES / "addition.toml", []), terms=(ReferenceKL(coef=0.1),))
    parts, _ = estimate(config, read_model(config, model_configuration(config)))
    assert parts["reference weights"] == base["weights (float32)"]


def test_no_estimate_without_the_model(tmp_path):
    assert memory_table(load_config(None, ["--model", "someone/absent"])) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["smollm2-two-words.toml", "--sampling.max_completion_tokens", "24"],
        ["smollm2-chain-sum.toml", "--prompts_per_step", "8"],
        ["smollm2-chain-sum.toml", "--prompts_per_step", "8", "--lora.rank", "16"],
    ],
    ids=["two-words", "chain-sum", "chain-sum-lora"],
)
def test_within_a_fifth_of_the_measured_peak(words, tmp_path):
    """Peak resident memory of the whole process; none of these runs was used to choose a constant."""
    words = [*words, *SHORT]
    _, expected = peaks(words)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = [
        sys.executable,
        "-m",
        "gspo",
        "train",
        str(RECIPES / words[0]),
        *words[1:],
        "--folder",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # wait4 took it, for its figures
    assert process.returncode == 0
    measured = usage.ru_maxrss * 1024
    assert abs(max(expected) / measured - 1) < 0.2, f"estimated {max(expected):,}, measured {measured:,}"
