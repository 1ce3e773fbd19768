"""The first mini-batch needs no pass of its own for old log-probs: its update runs on the weights that they are of."""

import pytest
import torch
from runs import metrics, settings, weights

from gspo.policies import TrainedPolicy
from gspo.training import loop
from gspo.training.run import start

NOISY = [("prompts_per_step", 8), ("old_logprobs", "policy"), ("policy.sampler_dtype", "bfloat16")]


@pytest.fixture
def passes(monkeypatch):
    """How often the policy scored rows without training on them."""
    calls = []
    plain = TrainedPolicy.logprobs
    monkeypatch.setattr(TrainedPolicy, "logprobs", lambda self, step: calls.append(1) or plain(self, step))
    return calls


def with_a_pass_for_every_mini_batch(monkeypatch):
    plain = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda *a, first_scores_itself, **k: plain(*a, **k))


@pytest.mark.parametrize("updates, epochs", [(1, 1), (2, 1), (2, 2)])
def test_one_pass_fewer_and_the_same_run_to_the_bit(tmp_path, monkeypatch, passes, updates, epochs):
    overrides = [*NOISY, ("updates_per_step", updates), ("epochs", epochs), ("steps", 3)]
    start(settings(tmp_path / "without", *overrides))
    made = len(passes)
    with_a_pass_for_every_mini_batch(monkeypatch)
    start(settings(tmp_path / "with", *overrides))
    assert made == 3 * (updates - 1) and len(passes) - made == 3 * updates
    assert metrics(tmp_path / "without") == metrics(tmp_path / "with")
    ours, theirs = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("correction", ["token_tis", "sequence_mask", "icepop", "opsm", "top_entropy"])
def test_corrections_wait_for_the_forward_pass(tmp_path, monkeypatch, correction):
    """A sampler in bfloat16, whose tokens are weighed by the gap: equal up to the order of two products.

    In micro-batches of a few rows: what is over the whole step (top_entropy) must not become a matter of each.
    """
    overrides = [*NOISY, ("corrections", [{"name": correction}]), ("epochs", 2), ("steps", 3)]
    overrides += [("micro_batch_tokens", 40)]
    start(settings(tmp_path / "without", *overrides))
    with_a_pass_for_every_mini_batch(monkeypatch)
    start(settings(tmp_path / "with", *overrides))
    ours, theirs = weights(tmp_path / "without"), weights(tmp_path / "with")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-5)
    for got, expected in zip(metrics(tmp_path / "without"), metrics(tmp_path / "with"), strict=True):
        assert got.keys() == expected.keys()
        for name in ("mismatch/mean", "ratio/seq/mean", "grad_norm", "loss"):
            if name in expected:
                assert got[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)


def test_the_mismatch_is_measured_on_the_way(tmp_path):
    start(settings(tmp_path / "run", *NOISY, ("steps", 2)))
    assert all(0 < line["mismatch/mean"] < 0.1 for line in metrics(tmp_path / "run")[1:])
