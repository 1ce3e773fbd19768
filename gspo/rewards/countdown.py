"""An expression of given numbers that must have a given value. Read by a parser, never run."""

import re
from collections.abc import Callable
from fractions import Fraction

TOKEN = re.compile(r"\d{1,9}|[-+*/()]")


def countdown(format: float = 0.1) -> Callable[[str, list[int], object], float]:
    """1 if the completion is an expression of column `numbers`, each used once, whose value is column `answer`;
    `format` for any other expression; 0 for what is none. Range {0, format, 1}."""

    def score(completion: str, numbers: list[int], answer: object) -> float:
        read = evaluate(completion)
        if read is None:
            return 0.0
        value, used = read
        return 1.0 if value == Fraction(str(answer)) and sorted(used) == sorted(numbers) else format

    return score


def evaluate(text: str) -> tuple[Fraction | None, list[int]] | None:
    """(value, numbers used) of an expression of + - * / and brackets; None where it is none.

    The value is None where something is divided by 0.
    """
    text = "".join(text.split())
    tokens = TOKEN.findall(text)
    if "".join(tokens) != text or not tokens or len(tokens) > 200:
        return None
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError):
        return None
    return None if rest else (value, [int(token) for token in tokens if token.isdigit()])


def _sum(tokens: list[str]) -> tuple[Fraction | None, list[str]]:
    value, rest = _product(tokens)
    while rest and rest[0] in "+-":
        other, after = _product(rest[1:])
        value, rest = _joined(value, rest[0], other), after
    return value, rest


def _product(tokens: list[str]) -> tuple[Fraction | None, list[str]]:
    value, rest = _atom(tokens)
    while rest and rest[0] in "*/":
        other, after = _atom(rest[1:])
        value, rest = _joined(value, rest[0], other), after
    return value, rest


def _atom(tokens: list[str]) -> tuple[Fraction | None, list[str]]:
    """A number, or a sum in brackets; IndexError or ValueError where there is neither."""
    if tokens[0] != "(":
        return Fraction(int(tokens[0])), tokens[1:]
    value, rest = _sum(tokens[1:])
    if rest[0] != ")":
        raise ValueError("a bracket is not closed")
    return value, rest[1:]


def _joined(a: Fraction | None, sign: str, b: Fraction | None) -> Fraction | None:
    if a is None or b is None or (sign == "/" and b == 0):
        return None
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]
