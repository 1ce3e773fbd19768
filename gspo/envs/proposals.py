"""How proposals, specs and measurements are written and read, and the episode of proposals assessed one by one."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gspo.envs.base import Action, Observation
from gspo.envs.circuit import NUMBER, UNKNOWN, Circuit, Parameter, Spec
from gspo.renderers import Prompt

Format = Literal["text", "digits"]
"""How specs, proposals and metrics are written: names and numbers, or digits of fixed width for a character model."""
Value = Literal["max", "sum", "last"]
"""What a whole trajectory is worth, for reports: the best of its turns' rewards, their sum, or the last."""

MARGINS = (-0.5, -0.2, -0.1, -0.03, 0.0, 0.03, 0.1, 0.2, 0.5)
"""Bounds of a margin's digit: 0 misses the target by more than half of it, 5 and more meet it."""


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
