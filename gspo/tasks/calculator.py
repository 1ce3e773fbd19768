"""Sums of a product, as bare text or as chat: "37*46+85=" -> "1787"."""

from typing import Any

from gspo.tasks.base import SPLIT_SEED, Dataset, Row, Rows, answer_equals, option, permutation, refuse_unknown

QUESTION = "What is {a}*{b}+{c}? Use the tools, and answer with the number alone."


def calculator(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """a*b+c for a, b, c below 10^digits (default 2: a million questions, of which 20,000 are drawn), a tenth held out.

    Options: `digits` (1 to 3); `chat`: questions for a chat model instead of bare text; `tools` (default true): cold
    start rows show the calls of environment `calculator` in bare text ("37*46+85=" -> "mul(37,46)", behind "1702;" ->
    "add(1702,85)", behind "1787;" -> "1787"); without, they answer at once. The split never depends on `seed`.
    """
    refuse_unknown("calculator", options, ("digits", "chat", "tools", "end"))
    digits, is_chat = option(options, "digits", 2), option(options, "chat", False)
    shows_tools, end = option(options, "tools", True), option(options, "end", "<eos>")
    if not 1 <= digits <= 3:
        raise ValueError(f"task option digits = {digits} must be 1, 2 or 3")
    base = 10**digits
    size = min(base**3, 20_000)
    numbers = permutation(SPLIT_SEED, digits, base**3)[:size]
    held, train = numbers[: size // 10], numbers[size // 10 :]

    def terms(i: int) -> tuple[int, int, int]:
        return i // base**2, i // base % base, i % base

    def row(i: int) -> Row:
        a, b, c = terms(i)
        text = f"{a}*{b}+{c}="
        question = [{"role": "user", "content": QUESTION.format(a=a, b=b, c=c)}]
        return {"prompt": question if is_chat else text, "answer": str(a * b + c)}

    def shown(i: int) -> Row:
        """Every question three times in a row: at its first, second and third turn."""
        number = int(train[i // 3])
        a, b, c = terms(number)
        first, second, last = f"mul({a},{b})", f"add({a * b},{c})", str(a * b + c)
        prompt = row(number)["prompt"]
        turns = [
            (prompt, first),
            (f"{prompt}{first}{end}{a * b};", second),
            (f"{prompt}{first}{end}{a * b};{second}{end}{last};", last),
        ]
        said, completion = turns[i % 3]
        return {**row(number), "prompt": said, "completion": completion}

    def answered(i: int) -> Row:
        return {**row(i), "completion": row(i)["answer"]}

    cold = Rows(range(3 * len(train)), shown) if shows_tools else Rows(train, answered)
    held_out = Rows(held[:held_out_prompts], row)
    return Dataset(
        name="calculator",
        train=Rows(train, row),
        held_out=held_out,
        rewards=(),
        is_correct=answer_equals,
        reading=(
            f"task calculator: {len(train):,} questions a*b+c of numbers below {base} to train on, {len(held):,} held "
            f"out by a fixed permutation, {len(held_out):,} of those evaluated"
        ),
        cold_start=() if is_chat else cold,
    )
