"""Resume is bit-equal: 2N steps = N steps, a kill, N steps more; for every kind of state a run has."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import SETTINGS, assert_same_run, metrics, settings, weights

from gspo.settings import write_toml
from gspo.training.run import resume, start
from gspo.training.state import checkpoints, damage, load_newest

GUESSING = f"{Path(__file__).parent / 'guessing.py'}:Guessing"
PAIRS = str(Path(__file__).parent / "pairs.jsonl")
VARIANTS = {
    "gspo": (),
    "policy's old log-probs": (("old_logprobs", "policy"),),
    "reference and entropy": (("terms", [{"name": "reference_kl"}, {"name": "entropy_bonus"}]),),
    "dapo, refill, filter": (
        ("objective", "dapo"),
        ("collector.refill", True),
        ("collector.drop_truncated", True),
        ("advantage", "lite_ppo"),
    ),
    "adaptive entropy": (("terms", [{"name": "adaptive_entropy", "target": 5.0, "delta": 0.1}]),),
    "groups and corrections": (
        ("objective", {"name": "egsw", "base": {"name": "dapo"}}),
        ("corrections", [{"name": "top_entropy", "share": 0.5}, {"name": "token_tis"}, {"name": "opsm"}]),
        ("micro_batch_tokens", 40),
        ("old_logprobs", "policy"),
    ),
    "preferences against a reference": (("objective", "trpa"), ("micro_batch_tokens", 40)),
    "advantages per token": (
        ("objective", "grpo"),
        ("advantage", {"name": "reinforce_pp", "gamma": 0.9, "kl_coef": 0.1}),
    ),
    "epochs, warm-up, cosine": (("epochs", 2), ("schedule.kind", "cosine"), ("schedule.warmup_steps", 2)),
    "bf16": (("dtype", "bfloat16"),),
    "shared prefix, padded micro-batches": (("layout", "shared_prefix"), ("micro_batch_tokens", 40)),
    "lora": (("lora.rank", 2), ("terms", [{"name": "reference_kl"}])),
    "drafts and refinements": (
        ("collector.drafts.number", 2),
        ("collector.drafts.template", "{draft} {prompt}"),
        ("collector.drafts.ties", "random"),
    ),
    "turns with an environment": (("environment.function", GUESSING), ("old_logprobs", "policy")),
    "alternatives at turns": (
        ("environment.function", GUESSING),
        ("collector.forks", True),
        ("collector.continuation", "random"),
    ),
    "pairs of a file": (("data.path", PAIRS), ("rewards", []), ("objective", "dpo")),
    "experts, free": (("tiny.experts", 4), ("policy", {"name": "causal_lm", "balance_coef": 0.01})),
    "experts, R2": (("tiny.experts", 4), ("policy", {"name": "causal_lm", "routing": "R2"}), ("optimizer.lr", 0.01)),
    "experts, R3, a sampler in bf16, epochs": (
        ("tiny.experts", 4),
        ("policy", {"name": "causal_lm", "routing": "R3", "sampler_dtype": "bfloat16"}),
        ("optimizer.lr", 0.01),
        ("epochs", 2),
    ),
    "experts, R3, turns, shared rows": (
        ("tiny.experts", 4),
        ("policy", {"name": "causal_lm", "routing": "R3"}),
        ("environment.function", GUESSING),
        ("layout", "shared_prefix"),
    ),
    "cold start": (("cold_start.steps", 3), ("cold_start.batch", 8), ("terms", [{"name": "reference_kl"}])),
}


class Stopped(Exception):
    """Stands for a kill at a step boundary."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch, variant):
    overrides = VARIANTS[variant]
    start(settings(tmp_path / "whole", *overrides))
    import gspo.training.loop as loop

    write = loop.write_rollouts

    def stop_in_step_three(folder, step, *rest):
        if step == 3:
            raise Stopped
        write(folder, step, *rest)

    monkeypatch.setattr(loop, "write_rollouts", stop_in_step_three)
    with pytest.raises(Stopped):
        start(settings(tmp_path / "cut", *overrides))
    monkeypatch.setattr(loop, "write_rollouts", write)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


SCHEDULE = (
    ("steps", 7),
    ("evaluation.every", 0),
    ("group_size", 2),
    ("checkpoints.every", 2),
    (
        "phase",
        [
            {"name": "explore", "steps": 2},
            {
                "name": "align",
                "steps": 2,
                "pairs_from": "explore",
                "drop_solved": 1.0,
                "verifier": {"name": "rules", "correct_at": -0.5, "max_repetition": 1.0},
                "reflection": "{attempt}{answer}",
                "settings": {"objective": "dpo", "optimizer.lr": 1e-4, "sampling.temperature": 0.9},
            },
        ],
    ),
)


def test_a_kill_in_any_step_of_any_phase_changes_nothing(tmp_path, monkeypatch):
    """Checkpoints lie at even steps, so that kills come right behind one, one step later, and as a phase begins."""
    start(settings(tmp_path / "whole", *SCHEDULE))
    pairs = [json.loads(p.read_text()) for p in sorted((tmp_path / "whole" / "pairs").iterdir())]
    assert len(pairs) == 2 and all(found["pairs"] for found in pairs) and pairs[-1]["dropped"]
    import gspo.training.loop as loop

    write = loop.write_rollouts
    for kill in range(1, 8):

        def stop(folder, step, *rest, kill=kill):
            if step == kill:
                raise Stopped
            write(folder, step, *rest)

        cut = tmp_path / f"cut-{kill}"
        monkeypatch.setattr(loop, "write_rollouts", stop)
        with pytest.raises(Stopped):
            start(settings(cut, *SCHEDULE))
        monkeypatch.setattr(loop, "write_rollouts", write)
        resume(cut)
        assert_same_run(tmp_path / "whole", cut)
        assert [json.loads(p.read_text()) for p in sorted((cut / "pairs").iterdir())] == pairs


@pytest.mark.parametrize("field", ["cursor", "version", "old_logprobs", "objective"])
def test_a_forgotten_field_is_caught(tmp_path, field):
    """Planted defect: a checkpoint without one field of the state resumes into another run."""
    overrides = (("schedule.kind", "linear"), ("terms", [{"name": "adaptive_entropy", "target": 5.0, "delta": 0.1}]))
    start(settings(tmp_path / "whole", *overrides))
    start(settings(tmp_path / "cut", *overrides, ("steps", 2)))
    newest = checkpoints(tmp_path / "cut" / "checkpoints")[0]
    state = json.loads((newest / "state.json").read_text())
    state.pop(field)
    if field == "old_logprobs":
        state[field] = "policy"
    (newest / "state.json").write_text(json.dumps(state))
    _rehash(newest)
    resume(tmp_path / "cut", [("steps", 4)])
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "whole", tmp_path / "cut")


def _rehash(path: Path) -> None:
    import hashlib

    manifest = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir() if p.name != "manifest.json"}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_finished_run_can_be_extended(tmp_path):
    start(settings(tmp_path / "long", ("steps", 5)))
    start(settings(tmp_path / "short", ("steps", 3)))
    resume(tmp_path / "short", [("steps", 5)])
    # The shorter run evaluated at its own end, step 3; nothing else differs.
    long, short = metrics(tmp_path / "long"), metrics(tmp_path / "short")
    strip = lambda rows: [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows]  # noqa: E731
    assert strip(long) == strip(short)
    left, right = weights(tmp_path / "long"), weights(tmp_path / "short")
    assert all((left[name] == right[name]).all() for name in left)


def test_kill_dash_nine_in_mid_run(tmp_path):
    """A real process, killed at three places of its run, resumed each time: the bits of the uninterrupted run."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(write_toml({**SETTINGS, "steps": 12}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
    command = lambda *words: subprocess.Popen(  # noqa: E731
        [sys.executable, "-m", "gspo", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command("train", str(recipe), "--folder", str(whole)).wait(timeout=120) == 0
    process = command("train", str(recipe), "--folder", str(cut))
    for line in (3, 6, 9):
        _wait_for_line(cut / "metrics.jsonl", line, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
        process = command("resume", str(cut))
    assert process.wait(timeout=120) == 0
    assert_same_run(whole, cut)


def _wait_for_line(path: Path, number: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") > number:
            return
        time.sleep(0.005)
    raise AssertionError(f"no line {number} in {path.name}; the process ended with {process.poll()}")


def test_sigterm_saves_and_ends_cleanly(tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(write_toml({**SETTINGS, "steps": 500, "checkpoints": {"every": 1000}}))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "gspo", "train", str(recipe), "--folder", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    _wait_for_line(folder / "metrics.jsonl", 2, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "gspo resume" in out
    state, _ = load_newest(folder / "checkpoints", print)
    assert state.step == metrics(folder)[-1]["step"] >= 2
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("harm", ["truncate", "alter", "manifest", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, harm, capsys):
    start(settings(tmp_path / "whole"))
    start(settings(tmp_path / "cut"))
    newest = checkpoints(tmp_path / "cut" / "checkpoints")[0]
    file = newest / ("manifest.json" if harm == "manifest" else "weights.safetensors")
    if harm == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        if harm == "alter":
            data[-5] ^= 1
        file.write_bytes(data if harm == "alter" else data[: len(data) // 2])
    assert damage(newest)
    resume(tmp_path / "cut")
    assert f"{newest.name} is damaged" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_no_sound_checkpoint_is_one_clear_error(tmp_path):
    start(settings(tmp_path / "run"))
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"all 2 checkpoints .* damaged"):
        resume(tmp_path / "run")


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    import errno

    import gspo.training.state as state

    real = state.save_file
    start(settings(tmp_path / "run", ("steps", 2)))
    monkeypatch.setattr(
        state, "save_file", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        resume(tmp_path / "run", [("steps", 4)])
    monkeypatch.setattr(state, "save_file", real)
    assert [damage(path) for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["", ""]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))
    resume(tmp_path / "run")


def test_old_files_are_pruned(tmp_path):
    run = start(settings(tmp_path / "run", ("checkpoints.keep_rollouts", 2), ("checkpoints.keep", 1)))
    assert len(list((run.folder / "rollouts").iterdir())) == len(list((run.folder / "ledger").iterdir())) == 2
    assert len(checkpoints(run.folder / "checkpoints")) == 1
