"""Mathematical equality, checked by math-verify in a process that can be killed."""

import logging
from collections.abc import Callable


def math() -> Callable[[str, object], float | None]:
    """1 if math-verify finds the completion's final expression equal to column `answer`, else 0. Range {0, 1}.

    A completion without an expression is 0. An answer that math-verify cannot read is an error, not a 0.
    math-verify's own timeouts are switched off: they turn a slow check into "wrong". The process that runs
    this is killed at the reward's timeout instead, and the row counts as a timeout.
    """
    try:
        import math_verify
    except ModuleNotFoundError:
        raise ValueError('math-verify is not installed: pip install "gspo[math]"') from None
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of every disabled timeout

    def score(completion: str, answer: object) -> float | None:
        if answer is None:  # a row of mixed data that has no answer: the reward does not apply to it
            return None
        text = str(answer)
        gold = math_verify.parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)
        if not gold:
            raise ValueError(f"answer {text!r:.60} is no mathematical expression; use the reward 'exact'")
        found = math_verify.parse(completion, parsing_timeout=None)
        return float(bool(found) and math_verify.verify(gold, found, timeout_seconds=None))

    return score
