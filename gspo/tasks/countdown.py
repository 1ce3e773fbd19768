"""Countdown with three numbers, as bare text: "3 7 4=25:" asks for an expression such as "3*7+4"."""

from fractions import Fraction
from functools import lru_cache
from itertools import combinations_with_replacement, permutations, product
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig
from gspo.rewards.countdown import countdown as countdown_reward
from gspo.rewards.countdown import evaluate
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, option, permutation, refuse_unknown

STREAM = 1 << 35
"""Streams of the cold start's expressions: this, and the number of the question above it."""
SHAPES = ("{}{}{}{}{}", "({}{}{}){}{}", "{}{}({}{}{})")
"""Three numbers with two signs between them, brackets on neither side, on the left, on the right."""


def countdown(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """All questions of three numbers from 1 to `largest` (default 9) and a whole target below 100; a tenth held out.

    The reward is 1 for an expression of + - * / and brackets that uses each number once and has the target's value,
    0.1 for any other expression, 0 for what is none. Cold start rows are partly wrong: in a share `noise` of them
    (default 0.7) the expression has the right numbers and any value. Neither split nor noise depends on `seed`.
    """
    refuse_unknown("countdown", options, ("largest", "noise"))
    largest, noise = option(options, "largest", 9), option(options, "noise", 0.7)
    if not 3 <= largest <= 20 or not 0 <= noise <= 1:
        raise ValueError(f"task options largest = {largest}, noise = {noise}: 3 to 20, and a share from 0 to 1")
    asked = questions(largest)
    order = permutation(SPLIT_SEED, largest, len(asked))
    held, train = order[: len(order) // 10], order[len(order) // 10 :]
    reward = countdown_reward()

    def row(i: int) -> Row:
        numbers, target, _ = asked[i]
        shuffled = np.array(numbers)[_drawn(i, 3).argsort(kind="stable")].tolist()
        return {"prompt": f"{' '.join(map(str, shuffled))}={target}:", "numbers": shuffled, "answer": str(target)}

    def with_completion(i: int) -> Row:
        numbers, _, right = asked[i]
        which, wrong = (_drawn(i, 5)[3:] >> np.uint64(11)) * 2.0**-53
        said = expressions(numbers)
        return {**row(i), "completion": said[int(wrong * len(said))] if which < noise else right}

    held_out = Rows(held[:held_out_prompts], row)
    return Dataset(
        name="countdown",
        train=Rows(train, row),
        held_out=held_out,
        rewards=(RewardConfig(name="countdown"),),
        is_correct=lambda completion, row: reward(completion, row["numbers"], row["answer"]) == 1.0,
        reading=(
            f"task countdown: {len(train):,} of all {len(asked):,} questions of three numbers up to {largest} to train "
            f"on, {len(held):,} held out by a fixed permutation, {len(held_out):,} of those evaluated"
        ),
        cold_start=Rows(train, with_completion),
    )


@lru_cache(maxsize=2)
def questions(largest: int) -> list[tuple[tuple[int, ...], int, str]]:
    """(numbers, target, an expression with that value), in order; the expression is the first that has it."""
    found = []
    for numbers in combinations_with_replacement(range(1, largest + 1), 3):
        targets: dict[int, str] = {}
        for text in expressions(numbers):
            value, _ = evaluate(text) or (None, [])
            if isinstance(value, Fraction) and value.denominator == 1 and 0 < value < 100:
                targets.setdefault(int(value), text)
        found += [(numbers, target, targets[target]) for target in sorted(targets)]
    return found


@lru_cache(maxsize=4096)
def expressions(numbers: tuple[int, ...]) -> list[str]:
    """Every way to write three numbers with two signs, in order; those whose brackets change nothing are left out."""
    found: dict[str, None] = {}
    for a, b, c in dict.fromkeys(permutations(numbers)):
        for shape, (left, right) in product(SHAPES, product("+-*/", repeat=2)):
            needs = shape == SHAPES[0]
            needs |= shape == SHAPES[1] and left in "+-" and right in "*/"
            needs |= shape == SHAPES[2] and (left == "/" or (left in "*-" and right in "+-"))
            if needs:
                found[shape.format(a, left, b, right, c)] = None
    return list(found)


def _drawn(i: int, count: int) -> np.ndarray:
    return np.random.Philox(key=np.array([SPLIT_SEED, STREAM + i], dtype=np.uint64)).random_raw(count)
