"""DAPO's soft overlong punishment.

Yu et al. 2025, https://arxiv.org/abs/2503.14476

    R(n) = 0                                 n <= L_max - L_cache
         = ((L_max - L_cache) - n) / L_cache  L_max - L_cache < n <= L_max                  (13)
         = -1                                n > L_max
"""

from collections.abc import Callable


def overlong(*, max_tokens: int, buffer_tokens: int) -> Callable[[str, list[int]], float]:
    """(13) with L_max = max_tokens, L_cache = buffer_tokens, n completion tokens. Range [-1, 0]."""
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(
            f"overlong needs 0 < buffer_tokens <= max_tokens, got buffer_tokens = {buffer_tokens} "
            f"and max_tokens = {max_tokens}"
        )

    def score(completion: str, completion_ids: list[int]) -> float:
        free = max_tokens - buffer_tokens
        return max(-1.0, min(0.0, (free - len(completion_ids)) / buffer_tokens))

    return score
