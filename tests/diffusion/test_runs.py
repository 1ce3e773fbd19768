"""Whole runs: resumed to the bit, looked at with every verb, refused in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from masked_models import MASK, VOCABULARY, bert
from runs import assert_same_run, metrics
from test_resume import Stopped
from transformers import PreTrainedTokenizerFast

from gspo.cli.idle import idle_settings
from gspo.cli.main import run as command
from gspo.masked_models import tiny_masked_model
from gspo.models import TinyConfig, character_tokenizer, tiny_model
from gspo.settings import apply_overrides, load_config, recipe_folder, validate, write_toml
from gspo.training.parts import Given, build
from gspo.training.run import resume, start
from gspo.training.supervised import supervised_sample, train_supervised

SETTINGS = {
    "name": "small",
    "model": "tiny",
    "policy": {"name": "diffusion", "draws": 1, "block": 8, "denoising_steps": 4},
    "tiny": {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 24},
    "steps": 4,
    "prompts_per_step": 4,
    "group_size": 4,
    "updates_per_step": 2,
    "epochs": 2,
    "sampling": {"max_completion_tokens": 17},
    "data": {"task": "sudoku", "options": {"empty": 10}},
    "optimizer": {"lr": 1e-3},
    "evaluation": {"every": 2, "prompts": 4},
    "checkpoints": {"every": 1},
    "trackers": [],
}
VARIANTS = {
    "as in the paper": (("terms", [{"name": "reference_kl", "estimator": "k2"}]),),
    "until the end token": (("policy.length", "until_eos"), ("micro_batch_tokens", 300)),
    "token-level bound": (("objective", "grpo"), ("policy.draws", 2), ("policy.is_coupled", False)),
    "mean field": (("policy.likelihood", "mean_field"),),
    "cold start and groups": (
        ("cold_start.steps", 3),
        ("cold_start.batch", 8),
        ("objective", {"name": "egsw", "base": {"name": "dapo"}}),
        ("terms", [{"name": "entropy_bonus"}]),
    ),
    "lora": (("lora.rank", 2), ("terms", [{"name": "reference_kl"}]), ("policy.logit_shift", 1)),
}


def settings(folder, *overrides):
    return validate(apply_overrides({**SETTINGS, "folder": str(folder)}, overrides))


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch, variant):
    import gspo.training.loop as loop

    start(settings(tmp_path / "whole", *VARIANTS[variant]))
    write = loop.write_rollouts

    def stop_in_step_three(folder, step, *rest):
        if step == 3:
            raise Stopped
        write(folder, step, *rest)

    monkeypatch.setattr(loop, "write_rollouts", stop_in_step_three)
    with pytest.raises(Stopped):
        start(settings(tmp_path / "cut", *VARIANTS[variant]))
    monkeypatch.setattr(loop, "write_rollouts", write)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert any(line.get("grad_norm", 0) > 0 for line in metrics(tmp_path / "cut"))


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(write_toml({**SETTINGS, "steps": 8}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}

    def process(*words):
        return subprocess.Popen([sys.executable, "-m", "gspo", *words], env=environment, stdout=subprocess.DEVNULL)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(settings(whole, ("steps", 8)))
    killed = process("train", str(recipe), "--folder", str(cut))
    log, deadline = cut / "metrics.jsonl", time.monotonic() + 150
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=30)
    assert process("resume", str(cut)).wait(timeout=200) == 0
    assert_same_run(whole, cut)


def test_what_a_run_writes_down(tmp_path):
    """Ratios in the ledger start at 1 in each step; what-if, why-clipped and the report read the run."""
    start(settings(tmp_path / "run", ("optimizer.lr", 0.1)))
    ledger = pq.read_table(tmp_path / "run" / "ledger" / "step_000002.parquet").to_pylist()
    went = [row for row in ledger if not row["skipped"]]
    first = [row for row in went if row["update"] == 0]
    assert first and all(row["log_ratio"] == 0 for row in first)
    assert any(abs(row["log_ratio"]) > 1e-6 for row in went if row["update"] > 0)
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "step_000002.parquet").to_pylist()
    assert {len(row["completion_ids"]) for row in rows} == {17}
    assert all(sum(row["old_logprobs"]) < 0 for row in rows)
    for words in (("what-if", "--step", "2", "--objective", "grpo"), ("why-clipped", "--step", "2")):
        assert command([words[0], str(tmp_path / "run"), *words[1:]]) == 0
    assert 'class="sudoku"' in (tmp_path / "run" / "report.html").read_text()


def test_every_verb(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    recipe = tmp_path / "small.toml"
    recipe.write_text(write_toml({**SETTINGS, "cold_start": {"steps": 1, "batch": 4}}))
    made = start(settings(tmp_path / "run", ("steps", 1)))
    model, policy = str(made.folder / "model"), ("--policy", "diffusion")
    for words, said in {
        ("plan", recipe): "passes that decode",
        ("check", recipe): "seconds per step, expected",
        ("eval", model, *policy, "--task", "sudoku", "--prompts", "3", "--max-tokens", "16"): "accuracy",
        ("sample", model, "0201004031202400", *policy, "--max-tokens", "16", "--temperature", "1"): "16 tokens",
        ("sft", "tiny", *policy, "--task", "sudoku", "--out", tmp_path / "sft", "--steps", "2",
         "--sampling.max_completion_tokens", "17"): "model:",
    }.items():  # fmt: skip
        assert command([str(word) for word in words]) == 0
        assert said in capsys.readouterr().out, words


# ---- refused


def causal_folder(path):
    loaded = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32), 0)
    loaded.tokenizer.add_special_tokens({"mask_token": "="})
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return str(path)


def maskless_folder(path):
    loaded = tiny_masked_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32), 0)
    loaded.model.save_pretrained(path)
    character_tokenizer("0123456789").save_pretrained(path)
    return str(path)


def remote_folder(path):
    """A model that comes with its own code, which must not run unasked."""
    path.mkdir()
    (path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Model"}})
    )
    (path / "own.py").write_text("raise SystemExit('this code ran')\n")
    return str(path)


REFUSED = {
    "no mask token": (maskless_folder, (), "has no mask token: policy = \"diffusion\" needs a masked model"),
    "causal": (causal_folder, (), "Qwen3ForCausalLM is a causal model (a later token changes nothing before it)"),
    "own code": (remote_folder, (), "policy.trust_remote_code = true"),
    "corrections": (None, (("corrections", [{"name": "token_tis"}]),), "compares with the sampler's log-probs"),
    "compile": (None, (("compile", True),), "compile is for causal language models"),
    "an environment": (None, (("environment.name", "calculator"),), "environment is for language models that write on"),
    "draws": (None, (("policy.draws", 0),), "policy.draws is 0; it must be at least 1"),
    "too long": (None, (("sampling.max_completion_tokens", 250),), "have 266 positions and BertForMaskedLM knows 256"),
    "sudoku": (None, (("data.options.empty", 12),), "empty must be 1 to 10"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    make, overrides, expected = REFUSED[mistake]
    model = () if make is None else (("model", make(tmp_path / "model")),)
    recipe = tmp_path / "small.toml"
    recipe.write_text(write_toml(apply_overrides(SETTINGS, [*model, *overrides])))
    assert command(["train", str(recipe), "--folder", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gspo: ") and error.count("\n") == 1 and expected in error


def test_a_causal_model_given_from_python():
    model, tokenizer = bert(torch.float32), character_tokenizer("0123456789")
    config = validate(SETTINGS)
    with pytest.raises(ValueError, match="'BertForMaskedLM' has no mask token"):
        build(config, Given(model=model, tokenizer=tokenizer), report=lambda text: None)
    model.config.mask_token_id = MASK  # LLaDA's tokenizer has none either; its configuration does
    assert model.config.vocab_size == VOCABULARY
    parts = build(config, Given(model=model, tokenizer=tokenizer), report=lambda text: None)
    assert parts.policy.network.mask_id == MASK
    causal = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32), 0)
    with pytest.raises(ValueError, match="Qwen3ForCausalLM is a causal model"):
        build(config, Given(model=causal.model, tokenizer=causal.tokenizer), report=lambda text: None)


# ---- supervised start


def test_supervised_rows_fill_the_canvas():
    parts = build(validate(SETTINGS), report=lambda text: None)
    renderer, row = parts.renderer, {"prompt": "12", "completion": "34"}
    assert supervised_sample(row, 0, renderer, 5).completion_ids == (*renderer.encode("34"), *[renderer.end_id] * 3)
    assert supervised_sample(row, 0, renderer, 1).completion_ids == tuple(renderer.encode("34"))[:1]
    assert supervised_sample(row, 0, renderer).completion_ids == (*renderer.encode("34"), renderer.end_id)


def test_supervised_steps_draw_anew():
    """The same rows in every step: without a draw of its own each would have the masks of the first."""
    parts = build(validate(SETTINGS), report=lambda text: None)
    losses = []
    train_supervised(
        parts.policy,
        parts.renderer,
        [{"prompt": "1200", "completion": "1234"}],
        steps=4,
        batch=2,
        lr=0.0,
        warmup_steps=0,
        seed=3,
        is_done=lambda step, loss: losses.append(loss) or False,
        width=6,
    )
    assert len(set(losses)) == 4


# ---- recipe, tokenizer


def test_the_recipe():
    config = load_config(recipe_folder() / "sudoku-espo.toml")
    assert config.policy.name == "diffusion" and config.objective.name == "gspo" and idle_settings(config) == []


def test_settings_without_effect_are_named():
    config = replace(load_config(recipe_folder() / "sudoku-espo.toml"), layout="padded", old_logprobs="policy")
    config = replace(config, policy=replace(config.policy, likelihood="mean_field", draws=4))
    said = "\n".join(idle_settings(config))
    for name in ("layout", "old_logprobs", "policy.draws = 4"):
        assert name in said


def test_the_small_model_is_an_ordinary_one(tmp_path):
    """Saved and loaded by transformers' own classes; its tokenizer has one mask token and keeps the characters."""
    from transformers import AutoModelForMaskedLM

    loaded = tiny_masked_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=32), 0)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again, tokenizer = AutoModelForMaskedLM.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 3, tokenizer.mask_token_id]])
    assert torch.equal(again.eval()(input_ids=ids).logits, loaded.model.eval()(input_ids=ids).logits)
    assert tokenizer("0123")["input_ids"] == loaded.tokenizer("0123")["input_ids"]
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == again.config.vocab_size - 1
