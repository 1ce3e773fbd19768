"""A curve in block characters, three text rows high, as wide as it is given room for."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions
from rich.text import Text

_BLOCKS = " ▁▂▃▄▅▆▇█"


def resample(values: tuple[float, ...], width: int) -> list[float]:
    """At most `width` values, each the mean of a stretch of equal length."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def block_rows(values: Iterable[float], height: int) -> list[str]:
    """Rows of block characters, top row first; the smallest value still shows one eighth of a cell."""
    values = list(values)
    low, high = min(values), max(values)
    scale = (8 * height - 1) / (high - low) if high > low else 0.0
    levels = [1 + round((value - low) * scale) for value in values]
    cell = lambda level, row: _BLOCKS[min(max(level - 8 * row, 0), 8)]  # noqa: E731
    return ["".join(cell(level, row) for level in levels) for row in reversed(range(height))]


@dataclass(frozen=True)
class Curve:
    """Rich renderable: label and last value, then the curve with its bounds at the left."""

    label: str
    values: tuple[float, ...]
    style: str
    columns_per_value: int = 1
    height: int = 3

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Text]:
        finite = tuple(value for value in self.values if math.isfinite(value))
        if not finite:
            return
        yield Text(f"{self.label} {finite[-1]:.3f}", no_wrap=True, overflow="ellipsis")
        wide = self.columns_per_value
        shown = [value for value in resample(finite, max(options.max_width - 8, 4) // wide) for _ in range(wide)]
        gutter = [f"{max(shown):6.3g}", *[" " * 6] * (self.height - 2), f"{min(shown):6.3g}"]
        for label, row in zip(gutter, block_rows(shown, self.height), strict=True):
            line = Text(f"{label} ", style="dim", no_wrap=True, overflow="crop")
            yield line.append(row, style=f"not dim {self.style}")
