"""Every mistake of a user's is one line on standard error and exit code 2."""

import errno
import json
import os
import subprocess
import sys

import pytest

MISTAKES = {
    "unknown verb": (("trian",), "unknown command 'trian'; did you mean 'train'?"),
    "unknown key": (("train", "--no.such.key", "1"), "unknown key 'no'"),
    "near miss": (("train", "--sampling.temprature", "1"), "'sampling.temprature'; did you mean 'temperature'?"),
    "near miss at the top": (("train", "--goup_size", "4"), "did you mean 'group_size'?"),
    "near miss in an objective": (("train", "--objective.clip_lo", "1"), "did you mean 'clip_low'?"),
    "no value": (("train", "--steps"), "--steps needs a value"),
    "no key": (("train", "addition", "steps"), "expected an override such as --steps 10, got 'steps'"),
    "a value is no table": (("train", "--steps.x", "1"), "--steps.x: steps is a value, not a table"),
    "no such position": (("train", "--stop", "['a']", "--stop.3", "b"), "'3' is not a position in a list of 1"),
    "wrong type": (("train", "--steps", "ten"), "steps: Input should be a valid integer"),
    "wrong type in a union": (("train", "--objective.clip_low", "x"), "objective.clip_low: Input should be a valid"),
    "out of a choice": (("train", "--old_logprobs", "trainer"), "old_logprobs: Input should be 'auto', 'sampler'"),
    "post-init": (("train", "--group_size", "0"), "group_size is 0; it must be at least 1"),
    "post-init of two fields": (("train", "--prompts_per_step", "10"), "choose a multiple"),
    "post-init of a table": (("train", "--sampling.top_p", "0"), "sampling.top_p is 0.0; it must be in (0, 1]"),
    "greedy training": (("train", "--sampling.temperature", "0"), "every completion of a group would be the same"),
    "never checkpoints": (("train", "--checkpoints.every", "0"), "checkpoints.every is 0; it must be at least 1"),
    "keeps no checkpoint": (("train", "--checkpoints.keep", "0"), "checkpoints.keep is 0"),
    "cold evaluation": (("train", "--evaluation.temperature", "-1"), "evaluation.temperature is -1.0"),
    "no evaluation sample": (("train", "--evaluation.samples", "0"), "evaluation.samples is 0"),
    "checks never": (("train", "--cold_start.check_every", "0"), "cold_start.check_every is 0"),
    "no round": (("train", "--collector.max_rounds", "0"), "collector.max_rounds is 0"),
    "negative seed": (("train", "--seed", "-1"), "seed is -1; it must be at least 0"),
    "unknown device": (("train", "--device", "gpu"), "device is 'gpu'; it must be auto, cpu, cuda, cuda:1 or mps"),
    "a field that is missing": (("train", "--objective", "dr_grpo"), "objective.max_length: Field required"),
    "unknown objective": (("train", "--objective", "gpso"), "objective: unknown name 'gpso'; did you mean 'gspo'?"),
    "unknown advantage": (("train", "--advantage", "groupstd"), "advantage: unknown name 'groupstd'"),
    "unknown term": (("train", "--terms", '[{name = "kl"}]'), "terms.0: unknown name 'kl'"),
    "missing recipe": (("train", "adition.toml"), "recipe 'adition.toml' does not exist; did you mean 'addition'?"),
    "missing recipe elsewhere": (("plan", "there/x.toml"), "recipe 'there/x.toml' does not exist"),
    "missing data": (("train", "--data.path", "no.jsonl"), "no file no.jsonl"),
    "unknown task": (("train", "--data.task", "adition"), "no task 'adition'; did you mean addition"),
    "unknown option": (("train", "--data.options.digit", "2"), "task 'addition' has no option 'digit'"),
    "unknown reward": (("train", "--rewards", '[{name = "exct"}]'), "no built-in reward 'exct'; did you mean exact"),
    "missing reward file": (("train", "--rewards", '[{function = "r.py:f"}]'), "reward 'f': no file"),
    "unknown model folder": (("train", "--model", "./no/model"), "model folder './no/model' does not exist"),
    "unreachable model": (("train", "--model", "no-one/nothing"), "model 'no-one/nothing' could not be loaded"),
    "resume of nothing": (("resume",), "which run?"),
    "resume of no run": (("resume", "."), ". is not a run folder: it has no config.toml"),
    "report of no run": (("report", "."), "no run in ."),
    "report of nothing": (("report",), "which run?"),
    "eval without a model": (("eval",), "gspo eval: the following arguments are required: model"),
    "eval repeats itself": (("eval", "tiny", "--samples", "4"), "--samples > 1 at temperature 0"),
    "eval of no problem": (("eval", "tiny", "--prompts", "0"), "--prompts and --samples must be at least 1"),
    "eval, k too large": (("eval", "tiny", "--k", "2"), "--k 2: pass@k needs 1 <= k <= --samples, which is 1"),
    "eval, held-out twice": (("eval", "tiny", "--data.held_out_prompts", "3"), "use --prompts"),
    "eval of no task": (("eval", "tiny", "--task", "sums"), "no task 'sums'"),
    "sample repeats itself": (("sample", "tiny", "1+1=", "--n", "2"), "--n > 1 at temperature 0"),
    "sample of half a number": (("sample", "tiny", "1+1=", "--n", "x"), "argument --n: invalid int value: 'x'"),
    "sft into an existing folder": (("sft", "tiny", "--task", "addition", "--out", "."), "--out . exists"),
    "sft without completions": (("sft", "tiny", "--task", "two_words", "--out", "x"), "no completion column"),
    "an impossible folder": (("train", "--steps", "1", "--folder", "/dev/null/run"), "/dev/null/run: Not a directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(gspo, mistake):
    words, expected = MISTAKES[mistake]
    assert expected in gspo(*words).line


def test_invalid_toml(gspo, tmp_path):
    (tmp_path / "bad.toml").write_text("steps = = 3\n")
    assert "bad.toml is not valid TOML" in gspo("train", "bad.toml").line


def test_a_date_is_no_name(gspo, tmp_path):
    (tmp_path / "dated.toml").write_text("name = 2024-01-01\n")
    assert "name: Input should be a valid string" in gspo("train", "dated.toml").line


def test_a_broken_row_is_named(gspo, recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "answer": "1"}\n{"prompt": "2", \n')
    assert "rows.jsonl:2: not JSON" in gspo("train", recipe(("data.path", "rows.jsonl"))).line


def test_data_without_a_prompt(gspo, recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    assert "no column `prompt` or `messages`" in gspo("train", recipe(("data.path", "rows.jsonl"))).line


def test_a_reward_that_always_raises(gspo, recipe, tmp_path):
    (tmp_path / "mine.py").write_text("def broken(completion):\n    return 1 / 0\n")
    words = ("train", recipe(("rewards", [{"function": "mine.py:broken"}])), "--folder", "run")
    line = gspo(*words).line
    assert "reward 'broken': 16 of 16 scores failed" in line and "ZeroDivisionError" in line and "mine.py:2" in line
    assert (tmp_path / "run" / "config.toml").exists() and (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_reward_that_sometimes_raises(gspo, recipe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "calls = []\n\ndef moody(completion):\n"
        "    calls.append(1)\n    return 1 / (len(calls) % 9) and len(completion)\n"
    )
    settings = (("rewards", [{"function": "mine.py:moody"}]), ("reward_failure_limit", 0.2))
    assert gspo("train", recipe(*settings), "--folder", "run").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    failed = [line["rewards/moody/failed"] for line in lines if line["step"] > 0]
    assert len(failed) == 2 and sum(failed) > 0


def test_a_reward_that_never_applies_trains_nothing(gspo, recipe, tmp_path):
    """Not a failure: rows without any score are not trained, and the run says so in its numbers."""
    (tmp_path / "mine.py").write_text("def silent(completion):\n    return None\n")
    assert gspo("train", recipe(("rewards", [{"function": "mine.py:silent"}])), "--folder", "run").code == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["updates/rows_share"] == 0 and last["rewards/silent/failed"] == 0


def test_run_folders_are_not_overwritten(gspo, recipe, tmp_path):
    (tmp_path / "run").mkdir()
    assert "run folder run exists; choose another --folder" in gspo("train", recipe(), "--folder", "run").line


def test_resume_refuses_unknown_keys(gspo, recipe):
    assert gspo("train", recipe(), "--folder", "run").code == 0
    assert "unknown key 'step'; did you mean 'steps'?" in gspo("resume", "run", "--step", "4").line


def test_a_full_disk(gspo, recipe, monkeypatch):
    import gspo.training.state as state

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "weights.safetensors")

    assert gspo("train", recipe(), "--folder", "run").code == 0
    monkeypatch.setattr(state, "save_file", full)
    line = gspo("resume", "run", "--steps", "4").line
    assert line == "the disk is full (weights.safetensors); the last good checkpoint is kept"


def test_a_full_disk_seen_by_a_library_in_rust(gspo, recipe, monkeypatch):
    """safetensors and tokenizers do not raise OSError."""
    import gspo.training.run as training

    def full(*_: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(training, "export_model", full)
    assert "the disk is full" in gspo("train", recipe(), "--folder", "run").line


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "gspo", "train", "--sampling.temprature", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("gspo: ") and done.stderr.endswith("did you mean 'temperature'?\n")
    assert done.stderr.count("\n") == 1
