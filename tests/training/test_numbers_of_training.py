"""Learning rates and pass@k against their definitions."""

import itertools
import math

import numpy as np
import pytest

from gspo.config import Schedule
from gspo.training.evaluate import pass_at_k
from gspo.training.schedule import learning_rate


def rates(schedule: Schedule, steps: int, updates: int, peak: float = 1.0) -> list[float]:
    return [learning_rate(schedule, peak, update, updates, steps) for update in range(steps * updates)]


def test_constant():
    assert rates(Schedule(), 2, 3, peak=0.5) == [0.5] * 6
    assert rates(Schedule(warmup_steps=2), 3, 2) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear():
    assert rates(Schedule(kind="linear"), 4, 1) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(Schedule(kind="linear", final=0.5), 2, 2) == pytest.approx([1, 0.875, 0.75, 0.625])
    assert rates(Schedule(kind="linear", warmup_steps=1), 3, 2) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


def test_cosine():
    seen = rates(Schedule(kind="cosine", final=0.1), 10, 1)
    assert seen == pytest.approx([0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])
    assert seen[0] == 1 and sorted(seen, reverse=True) == seen


def test_beyond_the_end_and_all_warm_up():
    assert learning_rate(Schedule(kind="linear", final=0.1), 2.0, 99, 1, 10) == pytest.approx(0.2)
    assert rates(Schedule(kind="cosine", warmup_steps=4), 2, 1) == [0.25, 0.5]


@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k):
    correct = np.random.default_rng(k).random((7, 5)) < 0.3
    correct[0], correct[1] = True, False
    subsets = list(itertools.combinations(range(5), k))
    expected = np.mean([[correct[row, list(subset)].any() for subset in subsets] for row in range(7)])
    assert pass_at_k(correct, k) == pytest.approx(expected)


def test_pass_at_1_is_accuracy_and_k_is_bounded():
    correct = np.array([[True, False], [False, False]])
    assert pass_at_k(correct, 1) == 0.25
    for k in (0, 3):
        with pytest.raises(ValueError, match="at least"):
            pass_at_k(correct, k)
