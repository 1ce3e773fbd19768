"""Which positions of a completion a masked diffusion model must predict, and what each prediction counts. Pure.

A pass hides some units of a row and predicts them from the rest; a row is scored in K passes. The masks of a row are a
function of the draw's counters and of the row's number, whatever rows stand beside it: old, reference and current
log-probs of an update have the same ones, and no generator is kept or moved.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

GOLDEN = (5**0.5 - 1) / 2
"""Steps of this size, modulo 1, lie evenly, however many are taken (Weyl)."""


@dataclass(frozen=True)
class Passes:
    """What is hidden in each of the K passes over a row, and the factor of what it predicts."""

    hidden: Bool[np.ndarray, "B K U"]
    weight: Float[np.ndarray, "B K"]


class Masking(Protocol):
    """How a likelihood is made of predictions."""

    @property
    def number(self) -> int:
        """Passes over a row (K)."""
        ...

    @property
    def redraws(self) -> bool: ...
    def passes(self, mask: Bool[np.ndarray, "B U"], rows: Int[np.ndarray, "B"], draw: tuple[int, ...]) -> Passes:
        """`mask`: the units; `rows`: numbers that name the rows' streams; `draw`: counters of the draw."""
        ...


@dataclass(frozen=True, kw_only=True)
class Elbo:
    """Evidence lower bound of a sequence of L units (ESPO, 2512.03759; LLaDA, 2502.09992), estimated from M draws.

        ELBO = E_x [ w(x) sum_{i hidden} log p(y_i | what is not hidden) ]        x units hidden, drawn uniformly
        coupled:      x uniform in 0..L; half the pass that hides them, w = (L+1)/x, and half the one that hides the
                      others, w = (L+1)/(L-x); one that hides nothing is 0
        independent:  x uniform in 1..L, w = L/x

    Both are unbiased. Coupling pays where a model is the more surprised the more is hidden (without any noise if that
    is in proportion); where it is not, independent masks are as good or better. Each unit's own share of the sum is its
    log-likelihood here: the units of a row add up to the estimate. The released code spreads x evenly over the rows of
    a batch; here rows and draws take steps of the golden ratio from one number per draw, which is as even and does not
    depend on who is in the batch.
    """

    draws: int = 2
    is_coupled: bool = True

    redraws: ClassVar[bool] = True

    @property
    def number(self) -> int:
        return self.draws * (2 if self.is_coupled else 1)

    def passes(self, mask: Bool[np.ndarray, "B U"], rows: Int[np.ndarray, "B"], draw: tuple[int, ...]) -> Passes:
        key, first = np.random.SeedSequence((len(draw), *draw)).generate_state(2, np.uint64)
        hidden = np.zeros((len(mask), self.number, mask.shape[1]), dtype=bool)
        weight = np.zeros((len(mask), self.number))
        for b, row in enumerate(rows.tolist()):
            units = np.flatnonzero(mask[b])
            size = len(units)
            stream = np.random.Philox(key=np.array([key, row], dtype=np.uint64)).random_raw(self.draws * size)
            order = stream.reshape(self.draws, size).argsort(axis=1, kind="stable")
            share = _spread(first, row * self.draws + np.arange(self.draws))
            for m in range(self.draws if size else 0):
                if not self.is_coupled:
                    x = 1 + int(share[m] * size)
                    hidden[b, m, units[order[m, :x]]] = True
                    weight[b, m] = size / x / self.draws
                    continue
                x = int(share[m] * (size + 1))
                hidden[b, 2 * m, units[order[m, :x]]] = True
                hidden[b, 2 * m + 1, units[order[m, x:]]] = True
                weight[b, 2 * m : 2 * m + 2] = (size + 1) / np.maximum([x, size - x], 1) / (2 * self.draws)
        return Passes(hidden, weight)


@dataclass(frozen=True, kw_only=True)
class MeanField:
    """Every unit predicted with all units hidden, as if they were independent given the prompt (d1, 2504.12216).

    d1 also hides a share of the prompt at random; here it stands.
    """

    number: ClassVar[int] = 1
    redraws: ClassVar[bool] = False

    def passes(self, mask: Bool[np.ndarray, "B U"], rows: Int[np.ndarray, "B"], draw: tuple[int, ...]) -> Passes:
        return Passes(mask[:, None].copy(), np.ones((len(mask), 1)))


def _spread(first: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """In [0, 1): from a number that 64 random bits give, so many golden steps on."""
    return (float(first >> np.uint64(11)) * 2.0**-53 + GOLDEN * numbers) % 1.0
