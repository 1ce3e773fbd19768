"""Minimising a function that only its values show: each turn a full point, scored by its distance from the optimum.

The generic neighbour of gspo/envs/sizing.py: same episode, same two formats, a known optimum in place of specs.

    regret = f(x) - min f,        r = scale / (scale + regret)                                               (1)

where scale is the regret that the best tenth of uniformly random points stay below: r is 1 where f takes its minimum,
1/2 or more for one random point in ten, and never 0 for a point that has a value.

Every row moves the optimum to a place x* of its own (a level of each coordinate, so that digits can say it) and the
prompt does not tell where: f(x) becomes f(x - x* + the function's own x*). Our own functions have no lower value
anywhere; one of opfunu keeps, beyond its box, the value of the box's nearest point.

Four classic functions need no dependency; the classes of the package opfunu (1.0.4, GPL-3.0: `pip install opfunu`),
such as those of the CEC competitions, go by "opfunu/F12017". Refused are functions with random terms, and those that do
not take the value they state as their minimum where they state it.

    sphere      sum x_i^2                                                                   [-5.12, 5.12]
    rosenbrock  sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2                                   [-2.048, 2.048]
    ackley      -20 exp(-0.2 sqrt(mean x_i^2)) - exp(mean cos(2 pi x_i)) + 20 + e           [-5.12, 5.12] (flat beyond)
    rastrigin   sum x_i^2 - 10 cos(2 pi x_i) + 10                                           [-5.12, 5.12]

as in Surjanovic & Bingham, Virtual Library of Simulation Experiments, https://www.sfu.ca/~ssurjano/optimization.html.
"""

import importlib.util
import io
import math
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from types import ModuleType

import numpy as np

from gspo.envs.circuit import UNKNOWN, Parameter
from gspo.envs.proposals import Assessment, Format, ProposalEnv, Value, check_episode, number, read, written
from gspo.renderers import Prompt
from gspo.tasks.base import Row

Vector = np.ndarray
LEVELS = 100
"""Levels of a coordinate in the digits format: two digits."""
SAMPLE = 512
"""Random points behind the scale of (1)."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function on a box, with its known minimum."""

    name: str
    low: Vector
    """[D] lower corner of the box; D is the number of coordinates."""
    high: Vector
    """[D] upper corner."""
    call: Callable[[Vector], float]
    best: Vector
    """[D] where the minimum is."""
    minimum: float

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its coordinates x1, x2, ... as what a proposal is made of."""
        return tuple(
            Parameter(name=f"x{i + 1}", low=float(low), high=float(high), scale="linear", levels=LEVELS)
            for i, (low, high) in enumerate(zip(self.low, self.high, strict=True))
        )


def sphere(x: Vector) -> float:
    return float(np.sum(x**2))


def rosenbrock(x: Vector) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def ackley(x: Vector) -> float:
    spread, waves = math.sqrt(np.mean(x**2)), np.mean(np.cos(2 * math.pi * x))
    # exp(0) and e cancel exactly at the optimum only in this order.
    return float(20 * (1 - math.exp(-0.2 * spread)) + (math.e - math.exp(waves)))


def rastrigin(x: Vector) -> float:
    return float(np.sum(x**2 + 10 * (1 - np.cos(2 * math.pi * x))))


CLASSIC: dict[str, tuple[Callable[[Vector], float], float, float]] = {
    "sphere": (sphere, 5.12, 0.0),
    "rosenbrock": (rosenbrock, 2.048, 1.0),
    "ackley": (ackley, 5.12, 0.0),
    "rastrigin": (rastrigin, 5.12, 0.0),
}
"""Function, half the edge of its box, every coordinate of its minimum; all have the minimum 0."""


@cache
def function_of(name: str, dimensions: int) -> Function:
    """A function by name: one of CLASSIC, or opfunu/CLASS."""
    if dimensions < 2:
        raise ValueError(f"dimensions = {dimensions} must be at least 2")
    if name.startswith("opfunu/"):
        return _of_opfunu(name, dimensions)
    if name not in CLASSIC:
        raise ValueError(
            f"no function {name!r}; there are: {', '.join(CLASSIC)}, and opfunu/CLASS such as opfunu/F12017"
        )
    call, edge, best = CLASSIC[name]
    ones = np.ones(dimensions)
    return Function(name=name, low=-edge * ones, high=edge * ones, call=call, best=best * ones, minimum=0.0)


def _of_opfunu(name: str, dimensions: int) -> Function:
    found = _opfunu().get_functions_by_classname(name.partition("/")[2])
    if not found:
        raise ValueError(
            f"opfunu has no function class {name.partition('/')[2]!r}: its names are like F12017 or Ackley01"
        )
    if found[0].randomized_term:
        raise ValueError(f"{name} has random terms: equal proposals would get unequal answers; take another function")
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            made = found[0](ndim=dimensions)
        best = np.asarray(made.x_global, dtype=float).reshape(-1)
        value = float(made.evaluate(best)) if made.ndim == dimensions else math.nan
    except (ValueError, OSError, AttributeError, SystemExit) as error:  # it prints why and exits where it lacks data
        why = " ".join(said.getvalue().split()) or error
        raise ValueError(f"{name} refuses {dimensions} dimensions: {why}") from None
    if made.ndim != dimensions or best.size != dimensions or made.f_global is None:
        raise ValueError(f"{name} has {made.ndim} dimensions and the optimum {made.x_global}: take another function")
    if not abs(value - made.f_global) <= 1e-4 * max(1.0, abs(made.f_global)):
        raise ValueError(f"{name} is {value:.6g} where it says its minimum {made.f_global:.6g} is: take another")
    low, high = np.asarray(made.lb, dtype=float), np.asarray(made.ub, dtype=float)

    def call(x: Vector) -> float:
        with np.errstate(all="ignore"):  # what has no value says so by being no number
            return float(made.evaluate(np.clip(x, low, high)))

    return Function(name=name, low=low, high=high, call=call, best=best, minimum=value)


_IMPORTING = Lock()


def _opfunu() -> ModuleType:
    """The package, imported when first asked for.

    opfunu 1.0.4 finds its data files through setuptools' pkg_resources, which setuptools 82 no longer has and older
    ones warn of; while it is imported, one function stands in for that module.
    """
    if importlib.util.find_spec("opfunu") is None:
        raise ValueError("opfunu is not installed: pip install opfunu, or take one of " + ", ".join(CLASSIC))
    with _IMPORTING:
        if "opfunu" in sys.modules or "pkg_resources" in sys.modules:
            return importlib.import_module("opfunu")
        stand_in = ModuleType("pkg_resources")
        vars(stand_in)["resource_filename"] = _resource_filename
        sys.modules["pkg_resources"] = stand_in
        try:
            return importlib.import_module("opfunu")
        finally:
            del sys.modules["pkg_resources"]


def _resource_filename(package: str, path: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / path)


@cache
def typical_regret(name: str, dimensions: int) -> float:
    """The scale of (1): the tenth percentile of regret over SAMPLE uniform points, the same ones in every process."""
    function = function_of(name, dimensions)
    raw = np.random.Philox(key=np.array([0, dimensions], dtype=np.uint64)).random_raw(SAMPLE * dimensions) * 2.0**-64
    points = function.low + (function.high - function.low) * raw.reshape(SAMPLE, dimensions)
    regrets = np.array([function.call(point) for point in points]) - function.minimum
    if np.nanmin(regrets) < -1e-6 * max(1.0, abs(function.minimum)):
        raise ValueError(
            f"{name} has a value {-np.nanmin(regrets):.6g} below its stated minimum; take another function"
        )
    return float(np.nanquantile(regrets, 0.1))


def prompt_of(function: Function, format: Format) -> Prompt:
    """The row's prompt, which says the box and not the optimum: a user message, or "04=" in digits (4 coordinates)."""
    parameters = function.parameters
    if format == "digits":
        return f"{len(parameters):02d}="
    ranges = ", ".join(f"{p.name} {number(p.low)}..{number(p.high)}" for p in parameters)
    middle = written(parameters, [LEVELS // 2] * len(parameters), "text")
    content = (
        f"Find the minimum of an unknown function f; its smallest value is {number(function.minimum)}. Variables: "
        f"{ranges}. Each proposal is evaluated and you see f; then propose a better one. Answer with all variables on "
        f"one line, like this: {middle}"
    )
    return [{"role": "user", "content": content}]


@dataclass(frozen=True, kw_only=True)
class BlackBox:
    """Makes black-box environments. A row says the function and where its optimum is (a level per coordinate):
    {"prompt": "04=", "function": "sphere", "optimum": [31, 62, 50, 47]}.

    Example, format "digits": action "31625060", observation "-89=" (100 r, rounded down, 99 at most) with reward 0.891.
    In text: action "x1=-1.9 x2=1.3 x3=0.1 x4=1", observation "f=1.588; best possible 0" with reward 0.903.
    Nothing depends on the seed.
    """

    turns: int = 5
    """Proposals per episode."""
    format: Format = "text"
    improvement: bool = False
    """Reward a turn by how far it goes beyond the best before it."""
    value: Value = "max"

    def __post_init__(self) -> None:
        check_episode(self.turns, self.format, self.value)

    def __call__(self, row: Row, seed: int) -> ProposalEnv:
        assess = partial(self.assess, *_moved(row))
        return ProposalEnv(assess, turns=self.turns, improvement=self.improvement, value=self.value)

    def assess_row(self, row: Row, text: str) -> Assessment:
        """What one proposal is worth to a row."""
        return self.assess(*_moved(row), text)

    def assess(self, function: Function, shift: Vector, text: str) -> Assessment:
        """Reads, evaluates and scores one point; `shift` is added to it before the function sees it."""
        try:
            point = read(function.parameters, text, self.format)
        except ValueError as error:
            return self._failed(f"not readable: {error}")
        value = function.call(np.array(list(point.values())) + shift)
        if not math.isfinite(value):
            return self._failed("f has no value there")
        regret = max(value - function.minimum, 0.0)
        scale = typical_regret(function.name, len(shift))
        reward = scale / (scale + regret)  # (1)
        numbers = f"f={number(value)}; best possible {number(function.minimum)}"
        return Assessment(
            reward=reward,
            feedback=f"-{min(int(100 * reward), 99):02d}=" if self.format == "digits" else numbers,
            is_solved=regret <= 1e-6 * scale,
        )

    def _failed(self, why: str) -> Assessment:
        return Assessment(reward=0.0, feedback=f"-{UNKNOWN}=" if self.format == "digits" else why, is_failed=True)


def _moved(row: Row) -> tuple[Function, Vector]:
    """A row's function, and what is added to a point so that the optimum lies where the row says."""
    missing = [name for name in ("function", "optimum") if name not in row]
    if missing:
        raise ValueError(f"a black-box row needs the columns 'function' and 'optimum'; {missing[0]!r} is missing")
    function = function_of(row["function"], len(row["optimum"]))
    if not all(0 <= level < LEVELS for level in row["optimum"]):
        raise ValueError(f"optimum = {row['optimum']} must be levels from 0 to {LEVELS - 1}")
    place = np.array([p.values[level] for p, level in zip(function.parameters, row["optimum"], strict=True)])
    return function, function.best - place


def draw_optimum(dimensions: int, *, seed: int, index: int, is_held_out: bool = False) -> list[int]:
    """Levels of an optimum in the middle eight tenths of the box, a function of (seed, index).

    Held-out optima are those whose levels add up to a multiple of five: never one of the training's.
    """
    key = np.array([seed & (2**64 - 1), 2 * index + is_held_out], dtype=np.uint64)
    generator = np.random.Philox(key=key)
    while True:
        levels = [10 + int(raw * 2.0**-64 * 80) for raw in generator.random_raw(dimensions)]
        if (sum(levels) % 5 == 0) == is_held_out:
            return levels
