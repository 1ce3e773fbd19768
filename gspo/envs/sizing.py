"""Analog circuit sizing by proposals: each turn a full sizing, simulated and scored on its own.

The setting of TL-GRPO (2026, https://arxiv.org/abs/2601.16480, of which only the abstract and digests were readable):
one fixed simulator, an action is a whole proposal, every turn is scored by the same reward, and what was tried and
measured stays in sight. The reward is ours, not the paper's, which does not give one that we could read:

    part_k = clip(1 - relative violation of spec k, 0, 1)        r = sum_k w_k part_k / sum_k w_k          (1)
    unreadable proposal, failed simulation: r = 0;     `improvement`: max(r, best so far) - best so far     (2)

The circuits that ship are in `circuits.py`; a simulator of yours takes their place by
`replace(op_amp(), simulator=yours)`, or in a `Circuit` of your own.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from threading import Lock
from typing import Literal, Protocol, get_args

import numpy as np

from gspo.envs.base import Action, Observation
from gspo.renderers import Prompt
from gspo.tasks.base import Row

Format = Literal["text", "digits"]
"""How specs, proposals and metrics are written: names and numbers, or digits of fixed width for a character model."""
Value = Literal["max", "sum", "last"]
"""What a whole trajectory is worth, for reports: the best of its turns' rewards, their sum, or the last."""
Scale = Literal["log", "linear"]
Range = tuple[float, float]
Levels = tuple[int, ...]

CODES = 100
"""Levels of a metric in the digits format: two digits."""
UNKNOWN = "**"
"""In place of a metric's digits: no spec, or no measurement."""
MARGINS = (-0.5, -0.2, -0.1, -0.03, 0.0, 0.03, 0.1, 0.2, 0.5)
"""Bounds of a margin's digit: 0 misses the target by more than half of it, 5 and more meet it."""
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


# ---- what is proposed, measured and asked for


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


# ---- the text protocol


def number(value: float) -> str:
    """As texts write it, four significant digits."""
    return f"{value:.4g}"


def written(parameters: Sequence[Parameter], levels: Sequence[int], format: Format) -> str:
    """A proposal as the policy would say it: "w1=10 cc=3", or the levels' digits."""
    if format == "digits":
        return "".join(f"{level:0{p.width}d}" for p, level in zip(parameters, levels, strict=True))
    return " ".join(f"{p.name}={number(p.values[level])}" for p, level in zip(parameters, levels, strict=True))


def read(parameters: Sequence[Parameter], text: str, format: Format) -> dict[str, float]:
    """The values of a proposal. What cannot be read raises ValueError with a sentence for the policy."""
    if format == "digits":
        return _read_digits(parameters, text.strip())
    pattern = rf"\b([a-z]\w*) ?= ?({NUMBER})([^\s,;]*)"
    given = {match[1]: match for match in re.finditer(pattern, text.lower(), re.ASCII)}
    return {p.name: _read_value(p, given.get(p.name)) for p in parameters}


def _read_digits(parameters: Sequence[Parameter], text: str) -> dict[str, float]:
    width = sum(p.width for p in parameters)
    if not re.fullmatch(f"[0-9]{{{width}}}", text):
        raise ValueError(f"expected {width} digits")
    values, start = {}, 0
    for p in parameters:
        level = int(text[start : start + p.width])
        if level >= p.levels:
            raise ValueError(f"{p.name} has levels 0 to {p.levels - 1}")
        values[p.name] = p.values[level]
        start += p.width
    return values


def _read_value(p: Parameter, match: re.Match[str] | None) -> float:
    if match is None:
        raise ValueError(f"{p.name} is missing")
    # "20k" read as 20 would be wrong by a thousand: nothing but the unit and the end of a sentence may follow.
    if match[3].rstrip(".)*`") not in ("", p.unit.lower()):
        raise ValueError(f"{p.name}={match[2]}{match[3][:20]} is not a number" + f" in {p.unit}" * bool(p.unit))
    if not p.low <= float(match[2]) <= p.high:
        raise ValueError(f"{p.name}={match[2][:20]} is outside {number(p.low)}..{number(p.high)}")
    return float(match[2])


def prompt_of(circuit: Circuit, specs: str, format: Format) -> Prompt:
    """The row's prompt: a user message that explains, or two digits per metric and "="."""
    wanted = {spec.metric.name: spec for spec in circuit.specs(specs)}
    if format == "digits":
        codes = (
            f"{m.target_code(wanted[m.name].target):02d}" if m.name in wanted else UNKNOWN for m in circuit.metrics
        )
        return "".join(codes) + "="
    middle = written(circuit.parameters, [p.levels // 2 for p in circuit.parameters], "text")
    ranges = ", ".join(f"{p.name} {number(p.low)}..{number(p.high)} {p.unit}".strip() for p in circuit.parameters)
    units = ", ".join(f"{metric.name} in {metric.unit}" for metric in circuit.metrics if metric.unit)
    content = (
        f"Size {circuit.title} so that {specs} ({units}). Parameters: {ranges}. Each proposal is simulated and you see "
        f"what came out; then propose a better one. Answer with all parameters on one line, like this: {middle}"
    )
    return [{"role": "user", "content": content}]


def feedback_of(circuit: Circuit, specs: Sequence[Spec], metrics: dict[str, float], format: Format) -> str:
    """What the policy reads after a simulation: "-", two digits per metric and "="; or numbers and what was missed."""
    if format == "digits":
        return "-" + "".join(f"{metric.code(metrics[metric.name]):02d}" for metric in circuit.metrics) + "="
    missed = [spec.metric.name for spec in specs if not spec.is_met(metrics[spec.metric.name])]
    numbers = " ".join(f"{name}={number(value)}" for name, value in metrics.items())
    return f"{numbers}; " + (f"missed: {' '.join(missed)}" if missed else "all specs met")


def margins_of(circuit: Circuit, specs: Sequence[Spec], metrics: dict[str, float]) -> str:
    """The digits format's short feedback: "-", one digit of MARGINS per metric, "*" for one not asked for, and "="."""
    digits = {spec.metric.name: bisect_right(MARGINS, spec.margin(metrics[spec.metric.name])) for spec in specs}
    return "-" + "".join(str(digits.get(metric.name, UNKNOWN[0])) for metric in circuit.metrics) + "="


# ---- the environment


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What became of one proposal."""

    reward: float
    """In 0..1, before `improvement`."""
    feedback: str
    is_solved: bool = False
    is_failed: bool = False
    """It could not be read or simulated."""


class ProposalEnv:
    """An episode of `turns` proposals, each assessed on its own. Serves every problem that assesses a text.

    A text said again in the same episode is not assessed again, so `evaluate` and then `step` costs one simulation.
    `evaluate` may be called from several threads at once (equal texts are then assessed once or twice, alike).
    """

    def __init__(
        self, assess: Callable[[str], Assessment], *, turns: int, improvement: bool = False, value: Value = "max"
    ) -> None:
        self._assess, self._turns, self._improvement, self._value = assess, turns, improvement, value
        self._rewards: tuple[float, ...] = ()
        self._assessed: dict[str, Assessment] = {}

    def start(self) -> Observation:
        return Observation()

    def step(self, action: Action) -> Observation:
        observation = self.evaluate(action)
        self._rewards += (self._assessed[action.text].reward,)
        return observation

    def evaluate(self, action: Action) -> Observation:
        """What `step` would answer."""
        turn = len(self._rewards) + 1
        if turn > self._turns:
            raise ValueError(f"the episode's {self._turns} turns are over; make a new environment")
        if action.text not in self._assessed:
            self._assessed[action.text] = self._assess(action.text)
        found, best = self._assessed[action.text], max(self._rewards, default=0.0)
        return Observation(
            content=found.feedback,
            reward=max(found.reward - best, 0.0) if self._improvement else found.reward,  # (2)
            is_done=turn == self._turns,
            facts={
                "solved": float(found.is_solved),
                "failed": float(found.is_failed),
                "best": max(best, found.reward),
            },
        )

    def fork(self) -> "ProposalEnv":
        copy = ProposalEnv(self._assess, turns=self._turns, improvement=self._improvement, value=self._value)
        copy._rewards, copy._assessed = self._rewards, dict(self._assessed)
        return copy

    def score(self) -> float | None:
        """The trajectory's value over its turns' rewards (1), whatever `improvement` says; None before the first."""
        if not self._rewards:
            return None
        return {"max": max(self._rewards), "sum": sum(self._rewards), "last": self._rewards[-1]}[self._value]

    def close(self) -> None:
        pass


def check_episode(turns: int, format: str, value: str) -> None:
    """Refuses settings of an episode that are none."""
    if turns < 1:
        raise ValueError(f"turns = {turns} must be at least 1")
    for name, given, known in (("format", format, get_args(Format)), ("value", value, get_args(Value))):
        if given not in known:
            raise ValueError(f"{name} = {given!r} must be one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Makes sizing environments. A row says its specs: {"prompt": ..., "specs": "gain>=70 gbw>=5 pm>=60 pw<=0.8"}.

    Example, format "digits": those specs with sr>=5 are the prompt "7057604447=" (gain 70, gbw level 57, pm 60, ...);
    the action "4455445" gets the observation "-8652574250=" with reward 0.949: gbw 52 and pm 57 fall short.
    The simulator is fixed, so nothing depends on the seed.
    """

    circuit: Circuit
    turns: int = 5
    """Proposals per episode."""
    format: Format = "text"
    improvement: bool = False
    """Reward a turn by how far it goes beyond the best before it."""
    value: Value = "max"
    weights: Mapping[str, float] = field(default_factory=dict)
    """By metric, the weight of its spec in the reward; 1 for what is not named."""
    margins: bool = False
    """In the digits format, answer with one digit per spec: how far it is missed or met ("-94566=")."""

    def __post_init__(self) -> None:
        check_episode(self.turns, self.format, self.value)
        if self.margins and self.format != "digits":
            raise ValueError('margins are digits: set format = "digits", or leave margins off')
        names = [metric.name for metric in self.circuit.metrics]
        for name, weight in self.weights.items():
            if name not in names or not 0 < weight < math.inf:
                raise ValueError(
                    f"weights = {{{name!r}: {weight}}}: give a positive weight to some of {', '.join(names)}"
                )

    def __call__(self, row: Row, seed: int) -> ProposalEnv:
        if "specs" not in row:
            raise ValueError(f"a sizing row needs a column 'specs' like 'gain>=70 pw<=0.8'; this one has {sorted(row)}")
        assess = partial(self.assess, self.circuit.specs(row["specs"]))
        return ProposalEnv(assess, turns=self.turns, improvement=self.improvement, value=self.value)

    def assess(self, specs: Sequence[Spec], text: str) -> Assessment:
        """Reads, simulates and scores one proposal."""
        try:
            parameters = read(self.circuit.parameters, text, self.format)
        except ValueError as error:
            return self._failed(f"not readable: {error}")
        try:
            metrics = self.circuit.measured(parameters)
        except SimulationError as error:
            return self._failed(f"simulation failed: {error}")
        weights = [self.weights.get(spec.metric.name, 1.0) for spec in specs]
        parts = [spec.part(metrics[spec.metric.name]) for spec in specs]
        return Assessment(
            reward=sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights),  # (1)
            feedback=self._feedback(specs, metrics),
            is_solved=all(spec.is_met(metrics[spec.metric.name]) for spec in specs),
        )

    def _feedback(self, specs: Sequence[Spec], metrics: dict[str, float]) -> str:
        if self.margins:
            return margins_of(self.circuit, specs, metrics)
        return feedback_of(self.circuit, specs, metrics, self.format)

    def _failed(self, why: str) -> Assessment:
        unknown = UNKNOWN[0] if self.margins else UNKNOWN
        codes = "-" + unknown * len(self.circuit.metrics) + "="
        return Assessment(reward=0.0, feedback=codes if self.format == "digits" else why, is_failed=True)


# ---- specs that some sizing meets


SLACK = 0.1
"""A target is up to this share easier than what the sizing behind it reaches."""
ATTEMPTS = 20_000


@dataclass(frozen=True, kw_only=True)
class SpecDraws:
    """Draws specs that some sizing meets and a random search would hardly have met.

    A sizing is drawn and simulated, each metric relaxed by up to SLACK to a value of its grid, until all targets lie in
    the range and none of `tries` random sizings (the same ones for every draw) meets them: without that sieve one good
    sizing comes near most specs, and nothing is to be learned from them. Only raw numbers of the generator are used,
    which do not change with numpy's version.
    """

    circuit: Circuit
    tries: int = 1000
    """Random sizings of the sieve, simulated once; 0 takes every draw in range."""

    def __call__(self, *, seed: int, index: int, is_held_out: bool = False) -> tuple[str, Levels]:
        """Specs and the levels of a sizing that meets them, a function of (seed, index) and the range."""
        metrics, ranges = self.circuit.metrics, self.circuit.held_out if is_held_out else self.circuit.training
        generator = _generator(seed, 2 * index + is_held_out)
        for _ in range(ATTEMPTS):
            levels, values = self._random_sizing(generator)
            slack = SLACK * generator.random_raw(len(metrics)) * 2.0**-64
            if not values:
                continue
            targets = [_relaxed(m, value, part) for m, value, part in zip(metrics, values, slack, strict=True)]
            if all(map(partial(_is_in_range, ranges), metrics, targets)) and not self._is_easy(targets):
                return " ".join(
                    f"{m.name}{m.direction}{number(t)}" for m, t in zip(metrics, targets, strict=True)
                ), levels
        raise ValueError(
            f"none of {ATTEMPTS:,} random sizings of circuit {self.circuit.name!r} has targets in {dict(ranges)} that "
            f"{self.tries:,} others miss: widen the range, or lower tries"
        )

    def _random_sizing(self, generator: np.random.Philox) -> tuple[Levels, list[float]]:
        """Levels, and the metrics in their order; none where the simulation fails."""
        parameters = self.circuit.parameters
        raw = generator.random_raw(len(parameters)) * 2.0**-64
        levels = tuple(int(u * p.levels) for p, u in zip(parameters, raw, strict=True))
        try:
            found = self.circuit.measured({p.name: p.values[n] for p, n in zip(parameters, levels, strict=True)})
        except SimulationError:
            return levels, []
        return levels, list(found.values())

    @cached_property
    def _sieve(self) -> np.ndarray:
        """[N,K] K metrics of the N random sizings that simulate, larger is better."""
        generator = _generator(0, 2**64 - 1)
        found = [values for _, values in (self._random_sizing(generator) for _ in range(self.tries)) if values]
        return np.array(found).reshape(-1, len(self.circuit.metrics)) * self._signs

    @cached_property
    def _signs(self) -> np.ndarray:
        return np.array([1.0 if metric.direction == ">=" else -1.0 for metric in self.circuit.metrics])

    def _is_easy(self, targets: Sequence[float]) -> bool:
        return bool((self._sieve >= np.array(targets) * self._signs).all(axis=1).any())


def _generator(seed: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed & (2**64 - 1), stream], dtype=np.uint64))


def _relaxed(metric: Metric, value: float, slack: float) -> float:
    """A value of the grid that is easier than `value`."""
    eased = value - abs(value) * slack if metric.direction == ">=" else value + abs(value) * slack
    return metric.grid[metric.code(eased)]


def _is_in_range(ranges: Mapping[str, Range], metric: Metric, target: float) -> bool:
    # The outermost codes stand for everything beyond them, so a target there would not be told from another.
    low, high = ranges.get(metric.name, (metric.low, metric.high))
    return max(low, metric.grid[1]) <= target <= min(high, metric.grid[-2])
