"""The last number of a completion against the answer."""

import math
import re
from collections.abc import Callable

# A sign counts unless it follows a digit, letter or closing bracket, where it is an operator: 5-3 ends in 3.
NUMBER = re.compile(r"(?:(?<![\w)\]])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?")


def last_number(text: str) -> float | None:
    """The last number written in a text, or None. "1,234.5" and "-2e3" are one number each."""
    found = [m for m in NUMBER.findall(text.replace("\u2212", "-")) if any(c.isdigit() for c in m)]
    return float(found[-1].replace(",", "")) if found else None


def numeric(*, tolerance: float = 1e-6) -> Callable[[str, object], float | None]:
    """1 if the last number y of the completion meets |y - a| <= tolerance * max(1, |a|), else 0. Range {0, 1}.

    a is column `answer`, which must be a number (thousands commas allowed).
    """
    if tolerance < 0:
        raise ValueError(f"tolerance = {tolerance} must not be negative")

    def score(completion: str, answer: object) -> float | None:
        if answer is None:  # a row of mixed data that has no answer: the reward does not apply to it
            return None
        try:
            wanted = float(str(answer).replace(",", ""))
        except ValueError:
            raise ValueError(f"answer {answer!r:.60} is not a number; use the reward 'math' or 'exact'") from None
        found = last_number(completion)
        if found is None or not math.isfinite(found):
            return 0.0
        return float(abs(found - wanted) <= tolerance * max(1.0, abs(wanted)))

    return score
