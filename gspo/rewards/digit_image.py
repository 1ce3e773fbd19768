"""How well an image shows the digit and the style that were asked for, by one of three judges.

| judge | what it is | learnt from |
|---|---|---|
| `weak` | logistic regressions | 400 images, each in one style of the training's |
| `strong` | networks of one hidden layer | 900 images in every style |
| `rule` | nearest neighbours for the digit; ink and border for the style | 897 other images |

Of the learnt judges the score is 1/2 P(digit) + 1/4 (P(stroke) + P(colour)); the rule's has 0 or 1 for each
probability. The rule is the metric: nothing should train on it but a comparison that says so.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

WEIGHTS = np.array([1 / 2, 1 / 4, 1 / 4])
JUDGES = ("weak", "strong", "rule")


def digit_image(judge: str = "strong") -> Callable[..., list[float]]:
    """Reads columns `images` [8,8] in 0..1 and `style` (digit, stroke, colour)."""
    if judge not in JUDGES:
        raise ValueError(f"digit_image: judge = {judge!r} must be one of {', '.join(JUDGES)}")

    def score(completions: list, images: list, style: list, **columns: Any) -> list[float]:
        shown, asked = np.stack(images), np.array(style)
        parts = rule_checks(shown, asked) if judge == "rule" else learnt(judge, shown, asked)
        return (parts @ WEIGHTS).tolist()

    return score


def learnt(judge: str, images: np.ndarray, styles: np.ndarray) -> np.ndarray:
    """[N,3] probability of each asked attribute."""
    flat = images.reshape(len(images), -1)
    columns = []
    for column, model in enumerate(_models(judge)):
        probability = model.predict_proba(flat)
        columns.append(probability[np.arange(len(flat)), styles[:, column]])
    return np.stack(columns, axis=1)


@lru_cache(maxsize=2)
def _models(judge: str) -> tuple[Any, ...]:
    """A classifier of each attribute."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    from gspo.tasks.digit_images import styled_set  # tasks read rewards' settings

    images, styles = styled_set(judge, seen_only=judge == "weak")
    flat = images.reshape(len(images), -1)
    if judge == "weak":
        return tuple(LogisticRegression(max_iter=2000).fit(flat, styles[:, i]) for i in range(3))
    make = lambda: MLPClassifier((64,), max_iter=40, tol=1e-3, random_state=0)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 40 passes are its length
        return tuple(make().fit(flat, styles[:, i]) for i in range(3))


def rule_checks(images: np.ndarray, styles: np.ndarray) -> np.ndarray:
    """[N,3] bool: digit, stroke and colour as asked."""
    rule = _rule()
    border = np.concatenate([images[:, :, 0], images[:, :, -1]], axis=1).mean(axis=1)
    colour = (border > 0.5).astype(int)
    ink = np.where(colour[:, None, None] == 1, 1 - images, images)
    digit = rule["near"].predict(ink.reshape(len(ink), -1))
    mass = ink.sum(axis=(1, 2))
    stroke = (mass > rule["ink"][styles[:, 0]]).astype(int)
    return np.stack([digit, stroke, colour], axis=1) == styles


@lru_cache(maxsize=1)
def _rule() -> dict[str, Any]:
    """Thresholds half-way between the means of the metric's own images, and neighbours among them."""
    from sklearn.neighbors import KNeighborsClassifier

    from gspo.tasks.digit_images import styled_set

    images, styles = styled_set("metric", seen_only=False)
    white = images[styles[:, 2] == 0]
    kinds = styles[styles[:, 2] == 0]
    mass = white.sum(axis=(1, 2))
    ink = [np.mean([mass[(kinds[:, 0] == d) & (kinds[:, 1] == s)].mean() for s in (0, 1)]) for d in range(10)]
    near = KNeighborsClassifier(3).fit(white.reshape(len(white), -1), kinds[:, 0])
    return {"near": near, "ink": np.array(ink)}
