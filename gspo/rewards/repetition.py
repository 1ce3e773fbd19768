"""A penalty for repeated word n-grams."""

from collections.abc import Callable


def repetition(*, ngram: int = 3, max_penalty: float = 1.0) -> Callable[[str], float]:
    """-max_penalty * (1 - distinct n-grams / n-grams), over lower-cased words. Range (-max_penalty, 0].

    A completion of fewer than `ngram` words is 0.
    """
    if ngram < 1 or max_penalty < 0:
        raise ValueError(f"repetition needs ngram >= 1 and max_penalty >= 0, got {ngram} and {max_penalty}")

    def score(completion: str) -> float:
        words = completion.lower().split()
        grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
        return max_penalty * (len(set(grams)) / len(grams) - 1) if grams else 0.0

    return score
