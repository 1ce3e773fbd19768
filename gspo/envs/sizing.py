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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from gspo.envs.circuit import UNKNOWN, Circuit, Levels, Metric, Range, SimulationError, Spec
from gspo.envs.proposals import (
    Assessment,
    Format,
    ProposalEnv,
    Value,
    check_episode,
    feedback_of,
    margins_of,
    number,
    read,
)
from gspo.tasks.base import Row


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
