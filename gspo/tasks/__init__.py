"""The built-in tasks: rows, a held-out split, rewards."""

import difflib
from typing import Any

from gspo.tasks.addition import addition
from gspo.tasks.base import Dataset
from gspo.tasks.calculator import calculator
from gspo.tasks.chain_steps import chain_steps
from gspo.tasks.countdown import countdown
from gspo.tasks.digit_images import digit_images
from gspo.tasks.digits import digits
from gspo.tasks.few_words import few_words
from gspo.tasks.reasoning_gym import reasoning_gym
from gspo.tasks.sudoku import sudoku
from gspo.tasks.two_words import two_words

TASKS = {
    "addition": addition,
    "two_words": two_words,
    "few_words": few_words,
    "calculator": calculator,
    "chain_steps": chain_steps,
    "sudoku": sudoku,
    "countdown": countdown,
    "digits": digits,
    "digit_images": digit_images,
}
SIZING = ("sizing/op_amp", "sizing/rc_ladder")


def load_task(name: str, options: dict[str, Any], *, seed: int, held_out_prompts: int) -> Dataset:
    """A built-in task by name, or reasoning_gym/<dataset>."""
    if name.startswith("reasoning_gym/"):
        return reasoning_gym(name, options, seed, held_out_prompts)
    if name in SIZING or name == "black_box":
        from gspo.tasks.sizing import black_box, sizing  # they read environments, which read this package

        if name == "black_box":
            return black_box(options, seed, held_out_prompts)
        return sizing(name, options, seed, held_out_prompts)
    if name not in TASKS:
        known = [*TASKS, *SIZING, "black_box"]
        near = difflib.get_close_matches(name, [*known, "reasoning_gym/chain_sum"], n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise ValueError(
            f"no task {name!r}; {hint} (also reasoning_gym/<dataset>; a file or a hub dataset goes into `path`)"
        )
    return TASKS[name](options, seed, held_out_prompts)
