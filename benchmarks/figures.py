"""How the recorded comparisons are drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"gspo": "#1f6fb4", "grpo": "#d1641b"}


def grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), constrained_layout=True, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot.close(figure)


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over the last `width` values, fewer at the beginning."""
    array = np.asarray(values, dtype=float)
    return np.array([array[max(i + 1 - width, 0) : i + 1].mean() for i in range(len(array))])


def band(axis: Axes, x: Sequence[float], lines: Sequence[Sequence[float]], **style: Any) -> None:
    """Mean of lines over the same x, and a band from the lowest to the highest of them."""
    array = np.asarray(lines, dtype=float)
    (drawn,) = axis.plot(x, array.mean(axis=0), lw=1.6, **style)
    axis.fill_between(x, array.min(axis=0), array.max(axis=0), color=drawn.get_color(), alpha=0.15, lw=0)


def points(axis: Axes, x: Sequence[float], found: Sequence[dict[str, float]], **style: Any) -> None:
    """Means with their intervals as bars."""
    mean, low, high = (np.array([f[name] for f in found]) for name in ("mean", "low", "high"))
    axis.errorbar(x, mean, yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)], capsize=3, lw=1.4, **style)
