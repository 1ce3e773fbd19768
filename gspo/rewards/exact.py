"""Equality with the answer."""

from collections.abc import Callable


def exact() -> Callable[[str, str], float]:
    """1 if the completion equals column `answer`, both stripped of outer whitespace; else 0. Range {0, 1}."""

    def score(completion: str, answer: object) -> float:
        return float(completion.strip() == str(answer).strip())

    return score
