"""`gspo.train`: objects where a recipe has names, and what of them the run folder records."""

import tomllib
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import gspo
from gspo.advantages import RLOO
from gspo.models import TinyConfig, tiny_model
from gspo.rewards import RewardConfig
from gspo.sampling import Sampling
from gspo.settings import validate
from gspo.training.run import read_summary

TINY = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32}
SMALL = {
    "steps": 1,
    "prompts_per_step": 4,
    "group_size": 2,
    "updates_per_step": 2,
    "evaluation": {"every": 0, "prompts": 4},
    "trackers": [],
}


def train(folder: Path, **settings):
    common = {"tiny": TINY, "sampling": {"max_completion_tokens": 3}, **SMALL}
    return gspo.train(folder=str(folder), **{**common, **settings})


def recorded(folder: Path):
    return validate(tomllib.loads((folder / "config.toml").read_text()))


def test_what_a_recipe_can_say_is_recorded(tmp_path):
    run = train(
        tmp_path / "run",
        data={"task": "addition", "options": {"digits": 1}},
        objective=gspo.GSPO(clip_high=1e-3),
        terms=(gspo.EntropyBonus(coef=0.1),),
        advantage=RLOO(),
        reward=["exact", RewardConfig(name="length", options={"target_tokens": 2})],
        sampling=Sampling(max_completion_tokens=2),
        stop=("=",),
    )
    config = recorded(run.folder)
    assert config.objective == gspo.GSPO(clip_high=1e-3) and config.terms == (gspo.EntropyBonus(coef=0.1),)
    assert config.advantage == RLOO() and config.sampling == Sampling(max_completion_tokens=2) and config.stop == ("=",)
    assert [reward.name for reward in config.rewards] == ["exact", "length"]
    assert config.data.options == {"digits": 1}
    assert read_summary(run.folder)["objective"]["clip_high"] == 1e-3
    assert run.is_finished and gspo.resume(run.folder, [("steps", 2)]).state.step == 2


def test_a_model_of_ones_own_is_trained_in_place(tmp_path):
    loaded = tiny_model(TinyConfig(**TINY), seed=5)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    run = train(
        tmp_path / "run",
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        reward=lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
        group_size=8,
        optimizer={"lr": 1e-2},
    )
    assert run.model is loaded.model and run.tokenizer is loaded.tokenizer
    assert any((p != before[name]).any() for name, p in run.model.named_parameters())
    saved = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert all((p == dict(saved.named_parameters())[name]).all() for name, p in run.model.named_parameters())


MISTAKES = {
    "unknown setting": ({"stepz": 1}, "gspo.train: unknown key 'stepz'; did you mean 'steps'?"),
    "unknown objective": ({"objective": "gpso"}, "unknown name 'gpso'; did you mean 'gspo'?"),
    "rows without prompts": ({"data": [{"prompt": "1"}, {"text": "2"}]}, "data row 1 has no 'prompt'"),
    "no rows": ({"data": []}, "data row 0 has no 'prompt'"),
    "rows without a reward": ({"data": [{"prompt": "1"}]}, "brings no reward of its own"),
    "two ways to name rewards": ({"reward": "exact", "rewards": [{"name": "exact"}]}, "not both"),
    "a reward that reads no completion": ({"reward": lambda x: 0.0}, "fit no known signature"),
    "a model without a tokenizer": ({"model": object()}, "a model object needs its tokenizer"),
    "greedy": ({"sampling": {"temperature": 0.0}}, "every completion of a group would be the same"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_value_error_that_says_so(tmp_path, mistake):
    settings, expected = MISTAKES[mistake]
    with pytest.raises(ValueError) as caught:
        train(tmp_path / "run", **settings)
    assert expected in str(caught.value) and not (tmp_path / "run").exists()
