"""Settings without effect are named; the shipped default has none."""

import pytest

from gspo.cli.idle import idle_settings
from gspo.settings import load_config

IDLE = {
    "one update": ("--updates_per_step 1", "the ratio is identically 1 and no clip bound acts (objective gspo"),
    "one update, old from the policy": (
        "--updates_per_step 1 --old_logprobs policy",
        "a second forward for a ratio of 1",
    ),
    "wide bounds": ("--objective.clip_low 0.2 --objective.clip_high 0.2", "practically never hit"),
    "narrow bounds": (
        "--objective grpo --objective.clip_low 3e-4 --objective.clip_high 4e-4",
        "3e-4 belongs to GSPO's",
    ),
    "other budget": ("--objective.name dr_grpo --objective.max_length 99", "objective.max_length = 99 differs from"),
    "std in dr_grpo": ("--objective.name dr_grpo --objective.max_length 6", "use group_mean"),
    "groups of one": ("--group_size 1", "nothing to compare with"),
    "term of 0": ('--terms [{name="entropy_bonus",coef=0.0}]', "terms.0 (entropy_bonus): coef = 0"),
    "reward of 0": ('--rewards [{name="exact",weight=0.0}]', "rewards.0 (exact): weight = 0, so it is only logged"),
    "one reward's weight": ('--rewards [{name="exact",weight=2.0}]', "group_std divides it out again"),
    "refill is off": ("--collector.max_rounds 9", "collector.max_rounds = 9 has no effect: collector.refill is off"),
    "greedy evaluation": ("--evaluation.samples 4", "evaluation.samples = 4 has no effect"),
    "greedy twice": ("--evaluation.greedy true", "evaluation.greedy = True has no effect"),
    "constant rate": ("--schedule.kind constant --schedule.final 0.5", "schedule.final = 0.5 has no effect"),
    "no adapters": ("--lora.alpha 8.0", "lora.alpha = 8.0 has no effect: lora.rank is 0"),
    "not tiny": ("--model x --tiny.layers 2", "tiny.layers = 2 has no effect: model is 'x'"),
    "no cold start": ("--cold_start.steps 0 --cold_start.lr 0.1", "cold_start.lr = 0.1 has no effect"),
}


@pytest.mark.parametrize("rule", IDLE)
def test_idle_settings_are_named(rule):
    words, expected = IDLE[rule]
    found = idle_settings(load_config(None, words.split()))
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("words", ["", "--objective grpo", "--objective dapo", "--epochs 2"])
def test_sensible_settings_are_not(words):
    assert idle_settings(load_config(None, words.split())) == []
