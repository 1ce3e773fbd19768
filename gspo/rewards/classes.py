"""Rewards of a whole set of classes at once (GRPO-RM, 2511.15256)."""

import numpy as np


def class_rewards(
    old_probabilities: np.ndarray, labels: np.ndarray, *, accuracy: float, uniformity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of every class of every question: ([Q*C, 2] accuracy and uniformity, [Q*C] their weighted sum).

    r_acc = 1 for the label. r_uni = -pi_old(i) for a wrong class i: wrong answers lose in proportion to their
    probability, which spreads what is left of it evenly. The paper gives both in words; this formula for r_uni is a
    proposal (certainty: unverified), and `uniformity` its scale.

    old_probabilities [Q,C], labels [Q] int.
    """
    is_right = np.zeros_like(old_probabilities)
    is_right[np.arange(len(labels)), labels] = 1.0
    wrong = -old_probabilities * (1.0 - is_right)
    values = np.stack([is_right.ravel(), wrong.ravel()], axis=1)
    return values, values @ np.array([accuracy, uniformity])
