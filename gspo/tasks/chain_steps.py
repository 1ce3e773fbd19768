"""Sums of several numbers, worked out in steps, as bare text: "7+5+8=" -> "7+5=12 12+8=20 20".

The answer stands once more behind the steps, so that the two can disagree: the reward reads the last number alone, and
pays for a right answer below wrong steps as much as for a right one that follows from them.
"""

from itertools import accumulate
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig
from gspo.rewards.numeric import last_number
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, option, permutation, refuse_unknown

MOST = 1_000_000
"""Questions that are enumerated."""
NOISE = 1 << 32
"""Streams of the noise: this, and the number of the question above it."""


def chain_steps(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """All sums of `terms` numbers below 10^digits, a tenth of them held out of cold start and RL alike.

    Options: `terms` (default 4) and `digits` (default 1: 10,000 sums, 1,000 held out), at most a million sums; `noise`
    (default 0.0): share of the cold start rows in which one step goes wrong, the next ones go on from its result, and
    the answer is right all the same ("7+5+8=" -> "7+5=16 16+8=24 20"). Every number is written with all its digits, as
    in task `addition`: "3+0+4=" -> "3+0=03 03+4=07 07". Neither split nor noise depends on `seed`.
    """
    refuse_unknown("chain_steps", options, ("terms", "digits", "noise"))
    terms, digits = option(options, "terms", 4), option(options, "digits", 1)
    noise = option(options, "noise", 0.0)
    base = 10**digits
    if terms < 2 or digits < 1 or base**terms > MOST:
        raise ValueError(
            f"task options terms = {terms}, digits = {digits}: terms must be at least 2, digits at least 1, and there "
            f"may be {MOST:,} sums at most"
        )
    if not 0 <= noise <= 1:
        raise ValueError(f"task option noise = {noise} must be a share, 0 to 1")
    size = base**terms
    width = len(str(terms * (base - 1)))
    numbers = permutation(SPLIT_SEED, terms, size)
    held, train = numbers[: size // 10], numbers[size // 10 :]

    def terms_of(i: int) -> list[int]:
        return [i // base**place % base for place in reversed(range(terms))]

    def row(i: int) -> Row:
        prompt = "+".join(f"{term:0{digits}d}" for term in terms_of(i)) + "="
        return {"prompt": prompt, "answer": f"{sum(terms_of(i)):0{width}d}"}

    def with_completion(i: int) -> Row:
        results = list(accumulate(terms_of(i)))[1:]
        results = spoiled(results, i, terms * (base - 1)) if is_noisy(i, noise) else results
        return {**row(i), "completion": f"{steps(terms_of(i), results, digits, width)} {row(i)['answer']}"}

    held_out = Rows(held[:held_out_prompts], row)
    return Dataset(
        name="chain_steps",
        train=Rows(train, row),
        held_out=held_out,
        rewards=(RewardConfig(name="numeric"),),
        is_correct=lambda completion, row: last_number(completion) == float(row["answer"]),
        reading=(
            f"task chain_steps: {len(train):,} of all {size:,} sums of {terms} numbers below {base} to train on, "
            f"{len(held):,} held out by a fixed permutation, {len(held_out):,} of those evaluated"
        ),
        cold_start=Rows(train, with_completion),
    )


def steps(terms: list[int], results: list[int], digits: int, width: int) -> str:
    """ "7+5=12 12+8=20" of the terms 7, 5, 8 and the results 12, 20."""
    starts = [f"{terms[0]:0{digits}d}", *(f"{result:0{width}d}" for result in results)]
    pairs = zip(starts, terms[1:], results, strict=False)  # the last start is the last result: nothing is added to it
    return " ".join(f"{start}+{term:0{digits}d}={result:0{width}d}" for start, term, result in pairs)


def is_noisy(i: int, noise: float) -> bool:
    """A function of the question's number."""
    return _drawn(i)[0] < noise


def spoiled(results: list[int], i: int, largest: int) -> list[int]:
    """Results of the steps when one of them goes wrong and the next ones go on from it; none is above `largest`.

    Which step, and by how much, is a function of the question's number.
    """
    _, where, what = _drawn(i)
    first = int(where * len(results))
    # Any other result from which the later steps stay within 0 .. largest.
    room = largest - (results[-1] - results[first])
    values = [value for value in range(room + 1) if value != results[first]]
    error = values[int(what * len(values))] - results[first]
    return [*results[:first], *(result + error for result in results[first:])]


def _drawn(i: int) -> np.ndarray:
    """Three numbers in [0, 1) of question i."""
    raw = np.random.Philox(key=np.array([SPLIT_SEED, NOISE + i], dtype=np.uint64)).random_raw(3)
    return (raw >> np.uint64(11)) * 2.0**-53
