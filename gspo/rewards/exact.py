"""Equality with the answer."""

from collections.abc import Callable


def exact() -> Callable[[str, object], float | None]:
    """1 if the completion equals column `answer`, both stripped of outer whitespace; else 0. Range {0, 1}."""

    def score(completion: str, answer: object) -> float | None:
        if answer is None:  # a row of mixed data that has no answer: the reward does not apply to it
            return None
        return float(completion.strip() == str(answer).strip())

    return score
