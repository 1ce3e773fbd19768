"""What the loop decides by itself: the denominator of the ratio, and which model was best."""

import pytest
import torch
from runs import settings

import gspo
from gspo.samplers import InProcess
from gspo.training.evaluate import EvaluationResult
from gspo.training.folder import RunFolder
from gspo.training.loop import keep_best
from gspo.training.parts import build
from gspo.training.run import start
from gspo.training.state import TrainState, load_newest
from gspo.training.update import Mismatch, is_sampler_sound
from gspo.types import Completion, Scores, Step


def choice_of(folder) -> str:
    return load_newest(folder / "checkpoints", print)[0].old_logprobs


def noisy(sample, from_step: int):
    """A sampler whose log-probs are off by 0.01 from some step on: far more than GSPO's bounds bear."""

    def say(self, requests):
        found = sample(self, requests)
        if requests[0].step < from_step:
            return found
        shift = lambda c: Completion(**{**vars(c), "logprobs": tuple(x - 0.01 for x in c.logprobs)})  # noqa: E731
        return [[shift(completion) for completion in group] for group in found]

    return say


def test_auto_trusts_a_sound_sampler(tmp_path):
    run = start(settings(tmp_path / "run"))
    assert run.summary["old_logprobs"] == choice_of(tmp_path / "run") == "sampler"


@pytest.mark.parametrize("from_step", [0, 2])
def test_auto_leaves_a_noisy_sampler_and_stays(tmp_path, monkeypatch, from_step):
    """Measured before the first update, and again by every step's first forward."""
    monkeypatch.setattr(InProcess, "sample", noisy(InProcess.sample, from_step))
    run = start(settings(tmp_path / "run"))
    assert run.summary["old_logprobs"] == choice_of(tmp_path / "run") == "policy"


@pytest.mark.parametrize("setting", ["sampler", "policy"])
def test_a_setting_is_obeyed(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(InProcess, "sample", noisy(InProcess.sample, 0))
    assert start(settings(tmp_path / "run", ("old_logprobs", setting))).summary["old_logprobs"] == setting


def test_a_third_of_the_smaller_bound_is_the_limit():
    x = torch.zeros(1, 1)
    band = lambda objective: objective.explain(Scores(logprobs=x), step_of(x)).band  # noqa: E731
    assert band(gspo.GSPO(clip_low=3e-4, clip_high=4e-4)) == 3e-4
    assert band(gspo.DHPO()) == 3e-4 and band(gspo.GMPO()) == 0.4 and band(gspo.SAPO()) == float("inf")
    noise = lambda std: Mismatch(mean=0.0, max=1.0, ratio_std=std, band=3e-4)  # noqa: E731
    assert is_sampler_sound(noise(0.99e-4)) and not is_sampler_sound(noise(1.01e-4))


def step_of(x):
    row = torch.zeros(1, dtype=torch.long)
    return Step(mask=x == 0, advantage=x[0], old_logprobs=x, length=row, group=row, rollout=row)


def result(reward: float, accuracy: float | None) -> dict[str, EvaluationResult]:
    return {
        "": EvaluationResult(
            reward=reward,
            accuracy=accuracy,
            correct=None,
            rewards=None,
            mean_length=1.0,
            clipped_ratio=0.0,
            examples=(),
        )
    }


def test_keep_best(tmp_path):
    """Accuracy counts where there is one, reward elsewhere; no result and no score change nothing."""
    parts = build(settings(tmp_path), report=print)
    folder, state = RunFolder(tmp_path / "run"), TrainState(best=0.5)
    for worse in ({}, result(9.0, 0.5), result(9.0, 0.4), result(0.5, None), result(float("nan"), None)):
        assert keep_best(parts, state, worse, folder) == state
    assert not folder.best.exists()
    assert keep_best(parts, state, result(0.0, 0.6), folder).best == 0.6
    assert keep_best(parts, state, result(0.7, None), folder).best == 0.7
    assert (folder.best / "model.safetensors").exists() and (folder.best / "tokenizer.json").exists()
