"""What a sizing problem is about: parameters on grids, metrics on scales, specs, and the simulator between them."""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import Literal, Protocol

import numpy as np

Scale = Literal["log", "linear"]
Range = tuple[float, float]
Levels = tuple[int, ...]

CODES = 100
"""Levels of a metric in the digits format: two digits."""
UNKNOWN = "**"
"""In place of a metric's digits: no spec, or no measurement."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class SimulationError(ValueError):
    """The simulator has no metrics for these parameters, by the proposal's own doing: reward 0, the episode goes on.
    Any other exception is a defect of the simulator and ends the rollout as one."""


class Simulator(Protocol):
    """Metrics of one sizing, by name; SimulationError where there are none. Equal parameters give equal metrics."""

    def __call__(self, parameters: dict[str, float]) -> dict[str, float]: ...


class Counting:
    """A simulator that counts its calls, those of all threads together: what a budget of simulations compares.

    Example: `counting = Counting(simulate_op_amp)`, `replace(op_amp(), simulator=counting)`, later `counting.calls`.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator, self._lock, self.calls = simulator, Lock(), 0

    def __call__(self, parameters: dict[str, float]) -> dict[str, float]:
        with self._lock:
            self.calls += 1
        return self._simulator(parameters)


def _spread(what: str, low: float, high: float, scale: Scale, count: int) -> tuple[float, ...]:
    """`count` values from low to high, of three significant digits, so that what is printed is what is meant."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (scale == "linear" or low > 0)):
        raise ValueError(f"{what} goes from {low} to {high}: give finite bounds in order, positive ones on a log scale")
    exact = np.geomspace(low, high, count) if scale == "log" else np.linspace(low, high, count)
    values = tuple(float(f"{value:.3g}") for value in exact)
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{what} has {count} levels from {low} to {high} that three digits cannot tell apart")
    return values


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One number of a proposal. The text format takes any value from low to high, the digits format one of `values`.

    Example: Parameter(name="w1", unit="um", low=1, high=100) is 1 um at level 0 and 100 um at level 9.
    """

    name: str
    unit: str = ""
    low: float
    high: float
    scale: Scale = "log"
    levels: int = 10
    """Choices in the digits format, 2 to 100; above 10 a level takes two digits."""

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 100:
            raise ValueError(f"parameter {self.name} has {self.levels} levels; it must have 2 to 100")
        _ = self.values

    @cached_property
    def values(self) -> tuple[float, ...]:
        return _spread(f"parameter {self.name}", self.low, self.high, self.scale, self.levels)

    @property
    def width(self) -> int:
        """Digits of one level."""
        return 1 if self.levels <= 10 else 2


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, whether more or less of it is wanted, and the scale on which digits write it.

    A code keeps to the safe side: a metric meets a target of `grid` exactly where its code meets the target's.
    Beyond low and high the first and the last code stand for everything.
    """

    name: str
    unit: str = ""
    direction: Literal[">=", "<="]
    low: float
    high: float
    scale: Scale = "log"

    def __post_init__(self) -> None:
        _ = self.grid

    @cached_property
    def grid(self) -> tuple[float, ...]:
        return _spread(f"metric {self.name}", self.low, self.high, self.scale, CODES)

    def code(self, value: float) -> int:
        """The level of a measured value, rounded to the worse side."""
        level = bisect_right(self.grid, value) - 1 if self.direction == ">=" else bisect_left(self.grid, value)
        return min(max(level, 0), CODES - 1)

    def target_code(self, target: float) -> int:
        """The level of a target, rounded to the stricter side."""
        level = bisect_left(self.grid, target) if self.direction == ">=" else bisect_right(self.grid, target) - 1
        return min(max(level, 0), CODES - 1)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one metric must reach."""

    metric: Metric
    target: float

    def is_met(self, value: float) -> bool:
        return value >= self.target if self.metric.direction == ">=" else value <= self.target

    def margin(self, value: float) -> float:
        """How far beyond the target, relative to it; negative where the spec is missed."""
        ahead = value - self.target if self.metric.direction == ">=" else self.target - value
        return ahead / abs(self.target)

    def part(self, value: float) -> float:
        """(1), in 0..1; 1 where the spec is met."""
        return min(max(1.0 + self.margin(value), 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """What is sized: its parameters, its metrics and who measures them."""

    name: str
    title: str
    """What the text prompt calls it."""
    parameters: tuple[Parameter, ...]
    metrics: tuple[Metric, ...]
    simulator: Simulator
    training: Mapping[str, Range] = field(default_factory=dict)
    """By metric, the range in which targets are drawn for training; a metric not named has all of its scale."""
    held_out: Mapping[str, Range] = field(default_factory=dict)
    """The same for held-out specs, apart from the training range in at least one metric."""

    def __post_init__(self) -> None:
        names = [item.name for item in (*self.parameters, *self.metrics)]
        wrong = [name for name in names if not re.fullmatch("[a-z][a-z0-9]*", name) or names.count(name) > 1]
        if wrong or not self.parameters or not self.metrics:
            raise ValueError(
                f"circuit {self.name!r} needs parameters and metrics with names of their own, of small letters and "
                f"digits; got {', '.join(names) or 'none'}"
            )
        unknown = [name for name in (*self.training, *self.held_out) if name not in self._metrics]
        if unknown:
            raise ValueError(f"circuit {self.name!r} has a range for {unknown[0]!r}, which is none of its metrics")

    @cached_property
    def _metrics(self) -> dict[str, Metric]:
        return {metric.name: metric for metric in self.metrics}

    def specs(self, text: str) -> tuple[Spec, ...]:
        """Reads "gain>=70 pw<=0.8": some of the metrics, each at most once, in its own direction."""
        found: dict[str, Spec] = {}
        for word in text.split():
            match = re.fullmatch(rf"(\w+)(>=|<=)({NUMBER})", word, re.ASCII)
            metric = self._metrics.get(match[1]) if match else None
            if match is None or metric is None or metric.direction != match[2] or metric.name in found:
                wanted = " ".join(f"{metric.name}{metric.direction}.." for metric in self.metrics)
                raise ValueError(
                    f"spec {word!r} of {text!r} is none of {self.name}'s: write some of {wanted}, each once"
                )
            target = float(match[3])
            if not (math.isfinite(target) and target):
                raise ValueError(f"spec {word!r}: a violation relative to {target} is not defined; give another target")
            found[metric.name] = Spec(metric=metric, target=target)
        if not found:
            raise ValueError(
                f"specs = {text!r} ask for nothing; write {self.metrics[0].name}{self.metrics[0].direction}.."
            )
        return tuple(found[metric.name] for metric in self.metrics if metric.name in found)

    def measured(self, parameters: dict[str, float]) -> dict[str, float]:
        """The simulator's metrics; what is not finite is a failed simulation, what is missing a defect."""
        metrics = self.simulator(dict(parameters))
        missing = [name for name in self._metrics if name not in metrics]
        if missing:
            raise ValueError(f"the simulator of circuit {self.name!r} gave no {missing[0]!r}, only {sorted(metrics)}")
        wrong = [name for name in self._metrics if not math.isfinite(metrics[name])]
        if wrong:
            raise SimulationError(f"{wrong[0]} came out as {metrics[wrong[0]]}")
        return {name: float(metrics[name]) for name in self._metrics}
