"""Length shaping, in completion tokens."""

from collections.abc import Callable


def length(*, target_tokens: int = 0, max_tokens: int = 0) -> Callable[[str, list[int]], float]:
    """Penalty for the number n of completion tokens (stop token included). Range [-1, 0].

    target_tokens = t:  -min(1, |n - t| / t)
    max_tokens = m:     0 if n <= m, else -min(1, (n - m) / m)
    """
    if (target_tokens > 0) == (max_tokens > 0) or min(target_tokens, max_tokens) < 0:
        raise ValueError(
            f"length needs exactly one of target_tokens and max_tokens above 0, got {target_tokens} and {max_tokens}"
        )

    def score(completion: str, completion_ids: list[int]) -> float:
        count = len(completion_ids)
        excess = abs(count - target_tokens) if target_tokens else max(0, count - max_tokens)
        return max(-1.0, 0.0 - excess / (target_tokens or max_tokens))

    return score
