"""Recipes parse, and settings survive being written down."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo.cli.idle import idle_settings
from gspo.config import RunConfig
from gspo.settings import apply_overrides, load_config, parse_overrides, recipe_folder, to_table, validate, write_toml

RECIPES = sorted(recipe_folder().glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse_and_round_trip(path):
    config = load_config(path)
    assert isinstance(config, RunConfig) and config.name == path.stem
    assert validate(to_table(config)) == config
    assert validate(tomllib.loads(write_toml(to_table(config)))) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_what_they_are(path):
    assert path.read_text().startswith("# ")


def test_the_default_is_the_shipped_addition_and_has_no_idle_setting():
    assert load_config() == load_config(recipe_folder() / "addition.toml")
    assert idle_settings(load_config()) == []


FULL = {
    "terms": [{"name": "reference_kl", "coef": 0.1}, {"name": "entropy_bonus"}],
    "rewards": [
        {"name": "exact", "weight": 2.0},
        {"function": "my file.py:f", "options": {"a b": {"c.d": [1, {"e": 'quote " and \\'}]}, "": 1e-05}},
    ],
    "objective": {"name": "dapo", "clip_high": float("inf")},
    "advantage": "rloo",
    "stop": ["<|end|>", "\n"],
    "system_prompt": 'line one\nline "two"\t\x7f\x00 é 😀',
    "data": {"path": "rows.jsonl", "template": "{a}\\n"},
}


def test_everything_at_once_round_trips():
    config = validate(FULL)
    assert validate(to_table(config)) == config
    assert validate(tomllib.loads(write_toml(to_table(config)))) == config


texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(texts, values, max_size=4))
def test_toml_is_an_inverse_of_tomllib(table):
    assert tomllib.loads(write_toml(table)) == table


@given(texts)
def test_text_survives_a_run_folder(text):
    config = validate({"system_prompt": text, "data": {"options": {text: text}}})
    assert validate(tomllib.loads(write_toml(to_table(config)))) == config


def test_nothing_is_not_a_setting():
    with pytest.raises(ValueError, match="TOML cannot hold"):
        write_toml({"data": {"options": {"x": None}}})


def test_overrides():
    words = ["--steps", "5", "--sampling.top-p=0.5", "--name", "mine", "--data.task=", "--objective.clip_low", "2e-4"]
    pairs = parse_overrides(words)
    assert pairs[:3] == [("steps", 5), ("sampling.top_p", 0.5), ("name", "mine")]
    table = apply_overrides({"name": "x", "steps": 1, "objective": "grpo", "epochs": 2}, pairs)
    assert table["name"] == "mine" and table["epochs"] == 2 and table["steps"] == 5
    assert table["objective"] == {"name": "grpo", "clip_low": 2e-4}


def test_another_objective_starts_from_its_own_defaults():
    base = {"objective": {"name": "gspo", "clip_low": 0.1}}
    assert apply_overrides(base, [("objective.name", "grpo")])["objective"] == {"name": "grpo"}
    assert apply_overrides(base, [("objective.name", "gspo")]) == base
