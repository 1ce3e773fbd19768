"""A verifier of rules: reward, arithmetic recomputed, repetition.

VerIPO (2505.19000) has a verifier of a small language model and rules that looks at the answer, at the agreement of
reasoning and answer, at repetition and at length. Which rules and which constants it has was not readable: these are
ours. The model is `judge.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gspo.limits import at_least
from gspo.verifiers.base import Attempt, Verdict

NUMBER = re.compile(r"-?\d+")
EQUATION = re.compile(r"(-?\d+(?:\s*[-+*]\s*-?\d+)+)\s*=\s*(-?\d+)")
TERM = re.compile(r"([-+*]?)\s*(-?\d+)\s*")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Correct by reward; consistent by recomputation; repetitive by n-grams."""

    name: Literal["rules"] = "rules"
    correct_at: float = 1.0
    """Reward from which an answer counts as right."""
    consistency: Literal["off", "equations"] = "off"
    """equations: every "a+b=c" in the text must hold (+, -, * on whole numbers), and the last number of the text must
    be the result of the last of them."""
    ngram: int = 4
    """Length of the n-grams of `max_repetition`, in words; in characters where the text has fewer than 2 words."""
    max_repetition: float = 0.5
    """Share of n-grams that occurred before, above which a text is repetitive; 1 turns it off."""

    def __post_init__(self) -> None:
        at_least(self, "verifier.", 1, "ngram")
        at_least(self, "verifier.", 0, "max_repetition")

    def __call__(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        return [self._verdict(attempt) for attempt in attempts]

    def _verdict(self, attempt: Attempt) -> Verdict:
        fault = inconsistency(attempt.text) if self.consistency == "equations" else ""
        share = repeated_share(attempt.text, self.ngram)
        is_repetitive = share > self.max_repetition
        notes = [fault, f"{share:.0%} of its {self.ngram}-grams are repeats" if is_repetitive else ""]
        return Verdict(
            is_correct=attempt.reward >= self.correct_at,
            is_consistent=not fault,
            is_repetitive=is_repetitive,
            note="; ".join(note for note in notes if note),
        )


def inconsistency(text: str) -> str:
    """What does not hold in a chain of equations, or nothing. A text without any equation gives no reason at all."""
    found = list(EQUATION.finditer(text))
    if not found:
        return "no step"
    for match in found:
        value = evaluated(match[1])
        if value != int(match[2]):
            return f"{match[1]} is {value}, not {match[2]}"
    last, stated = int(found[-1][2]), int(NUMBER.findall(text)[-1])
    return "" if stated == last else f"the steps end in {last}, the answer is {stated}"


def evaluated(expression: str) -> int:
    """Whole numbers under +, - and *, the product first."""
    total, product, sign = 0, None, 1
    for operator, number in TERM.findall(expression):
        value = int(number)
        if product is None:
            product = -value if operator == "-" else value
        elif operator == "*":
            product *= value
        else:
            total, product, sign = total + sign * product, value, -1 if operator == "-" else 1
    return total + sign * (product or 0)


def repeated_share(text: str, ngram: int) -> float:
    """Share of n-grams that occurred before in the text."""
    units: Sequence[str] = words if len(words := text.split()) > 1 else text
    grams = [tuple(units[i : i + ngram]) for i in range(len(units) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
