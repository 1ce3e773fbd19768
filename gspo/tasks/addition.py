"""Sums of two numbers as bare text, every number written with all its digits: "17+05=" -> "022"."""

from typing import Any

from gspo.rewards.base import RewardConfig
from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, answer_equals, option, permutation, refuse_unknown


def addition(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """All pairs a, b in 0..10^digits - 1, a tenth of them held out of cold start and RL alike.

    Option `digits` (default 2: 10,000 pairs, 1,000 held out). Operands are written with that many digits
    and the sum with one more ("07+40=" -> "047"): shorter numbers would be rare formats of their own, which a tiny
    model gets wrong for being rare. The split never depends on `seed`.
    """
    refuse_unknown("addition", options, ("digits",))
    digits = option(options, "digits", 2)
    if not 1 <= digits <= 3:
        raise ValueError(f"task option digits = {digits} must be 1, 2 or 3")
    base = 10**digits
    order = permutation(SPLIT_SEED, digits, base * base)
    held, train = order[: len(order) // 10], order[len(order) // 10 :]

    def row(i: int) -> Row:
        a, b = divmod(i, base)
        return {"prompt": f"{a:0{digits}d}+{b:0{digits}d}=", "answer": f"{a + b:0{digits + 1}d}"}

    def with_completion(i: int) -> Row:
        return {**row(i), "completion": row(i)["answer"]}

    held_out = Rows(held[:held_out_prompts], row)
    return Dataset(
        name="addition",
        train=Rows(train, row),
        held_out=held_out,
        rewards=(RewardConfig(name="exact"),),
        is_correct=answer_equals,
        reading=(
            f"task addition: {len(train):,} of all {base * base:,} sums of two numbers below {base} to train on, "
            f"{len(held):,} held out by a fixed permutation, {len(held_out):,} of those evaluated"
        ),
        cold_start=Rows(train, with_completion),
    )
