"""The built-in rewards by name. Each is a factory: options in, a row-by-row function out."""

import difflib
from collections.abc import Callable

from gspo.rewards.countdown import countdown
from gspo.rewards.digit_image import digit_image
from gspo.rewards.exact import exact
from gspo.rewards.few_words import few_words
from gspo.rewards.format import format
from gspo.rewards.length import length
from gspo.rewards.math import math
from gspo.rewards.numeric import numeric
from gspo.rewards.overlong import overlong
from gspo.rewards.reasoning_gym import reasoning_gym
from gspo.rewards.regex import regex
from gspo.rewards.repetition import repetition
from gspo.rewards.sudoku import sudoku
from gspo.rewards.two_words import two_words

BUILTIN: dict[str, Callable[..., Callable]] = {
    factory.__name__: factory
    for factory in (
        exact,
        numeric,
        math,
        regex,
        format,
        length,
        overlong,
        repetition,
        reasoning_gym,
        two_words,
        few_words,
        sudoku,
        countdown,
        digit_image,
    )
}

KILLABLE = ("math", "regex", "reasoning_gym")
"""Can hang on what a model writes (9**9**9**9, a pattern that backtracks) while holding the interpreter lock, so
that no thread could give up on them: they run in a process of their own."""


def builtin(name: str) -> Callable[..., Callable]:
    """The factory of that name."""
    if name not in BUILTIN:
        near = difflib.get_close_matches(name, BUILTIN, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(BUILTIN))}"
        own = " (a function of your own goes into `function`, as path/to/file.py:function)" if ":" in name else ""
        raise ValueError(f"no built-in reward {name!r}; {hint}{own}")
    return BUILTIN[name]
