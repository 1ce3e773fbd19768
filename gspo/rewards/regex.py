"""A pattern in the completion."""

import re
from collections.abc import Callable


def regex(*, pattern: str, full: bool = False) -> Callable[[str], float]:
    """1 if the pattern is found in the completion (full: matches all of it), else 0. Range {0, 1}.

    Python's `re`; `.` does not match line breaks unless the pattern says (?s).
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    match = compiled.fullmatch if full else compiled.search

    def score(completion: str) -> float:
        return float(match(completion) is not None)

    return score
