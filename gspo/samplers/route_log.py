"""Where the tokens of a mixture of experts went while they were sampled: by completion, whoever leaves or joins."""

import numpy as np

FIRST_LENGTH = 64
"""Tokens of room at first; doubled when full."""


class RouteLog:
    """Of `count` completions of at most `limit` tokens; stays empty for a network without experts."""

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.limit = count, limit
        self.prompts: dict[int, np.ndarray] = {}
        """[T,layers,k] by the prompt's number."""
        self.tokens: np.ndarray | None = None
        """[count,room,layers,k]: the routes of the tokens that were fed, each in its place in the completion."""

    def prefilled(self, routes: dict[int, np.ndarray]) -> None:
        self.prompts |= routes

    def fed(self, completions: np.ndarray, places: np.ndarray, routes: np.ndarray | None) -> None:
        """[R,layers,k] of a token of each of R completions; one that has ended writes over its last place."""
        if routes is None:
            return
        self._make_room(int(places.max()) + 1, routes)
        assert self.tokens is not None
        self.tokens[completions, places] = routes

    def of(self, completion: int, prompt: int, fed: int) -> np.ndarray:
        """[T + fed, layers, k]: of the prompt, and of so many tokens of the completion."""
        if self.tokens is None:
            return self.prompts[prompt]
        return np.concatenate([self.prompts[prompt], self.tokens[completion, :fed]])

    def _make_room(self, length: int, like: np.ndarray) -> None:
        held = 0 if self.tokens is None else self.tokens.shape[1]
        if length <= held:
            return
        room = max(length, min(max(2 * held, FIRST_LENGTH), self.limit))
        new = np.zeros((self.count, room, *like.shape[1:]), dtype=like.dtype)
        if self.tokens is not None:
            new[:, :held] = self.tokens
        self.tokens = new
