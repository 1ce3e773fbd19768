"""Random numbers as a function of counters: (run seed, step, prompt id, rollout index, position) -> uniform.

No generator is kept, so nothing needs saving, and a sample does not depend on which others were drawn beside it.
The mixing function is SplitMix64 (Steele, Lea, Flood 2014), chained over the counters.
"""

from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_keys(counters: Sequence[tuple[int, ...]]) -> np.ndarray:
    """uint64 [N]: one stream per tuple of counters (all tuples of one length)."""
    table = np.asarray(counters, dtype=np.int64).astype(np.uint64)
    key = np.zeros(len(table), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in table.T:
            key = _mix(key + _GOLDEN + _mix(column + _GOLDEN))
    return key


def uniforms(keys: np.ndarray, position: int | np.ndarray) -> np.ndarray:
    """float64 [N] in [0, 1): the number at `position` (one for all, or [N]) of each stream, 53 random bits."""
    with np.errstate(over="ignore"):
        bits = _mix(keys + (np.asarray(position, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
