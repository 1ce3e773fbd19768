"""Games that draw from Python's or numpy's global generator, many of them side by side.

TextArena and GEM seed `random` itself. Where many games run in one process they would draw from each other's stream:
equal seeds would not give equal games, and a game's seeding would reach into the run. Each game gets its own state of
the two generators, put in place while one of its calls runs and taken out again after it.
"""

import random
from threading import RLock

import numpy as np

_LOCK = RLock()
"""One game's call at a time: the generators belong to the process. A call that hangs stops all that share it."""
SEEDS = 2**32
"""numpy's global generator takes no larger ones."""


class GlobalRandom:
    """The generators of one game: `with generators: game.step(...)`. A deep copy goes on alike."""

    def __init__(self, seed: int) -> None:
        self._own = (random.Random(seed).getstate(), np.random.RandomState(seed % SEEDS).get_state())

    def __enter__(self) -> "GlobalRandom":
        _LOCK.acquire()
        self._outer = (random.getstate(), np.random.get_state())
        random.setstate(self._own[0])
        np.random.set_state(self._own[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._own = (random.getstate(), np.random.get_state())
        random.setstate(self._outer[0])
        np.random.set_state(self._outer[1])
        _LOCK.release()
