"""A layout with tags."""

import re
from collections.abc import Callable
from itertools import pairwise


def format(*, template: str = "<think>...</think><answer>...</answer>") -> Callable[[str], float]:
    """1 if the completion has the template's layout, else 0. Range {0, 1}.

    "..." stands for any text that is not blank. Every tag occurs exactly once, in order; between two tags, and
    around the whole, only whitespace is allowed.
    """
    tokens = [part.strip() for part in re.split(r"(\.\.\.|<[^<>]+>)", template) if part.strip()]
    literals = [token for token in tokens if token != "..."]
    if not literals:
        raise ValueError(f"template {template!r} has no tag: write e.g. <think>...</think><answer>...</answer>")
    if any(first == second == "..." for first, second in pairwise(tokens)):
        raise ValueError(f"template {template!r} has '...' twice in a row: put a tag between them")
    if len(set(literals)) < len(literals):
        raise ValueError(f"template {template!r} repeats a tag; every tag must occur once")

    def score(completion: str) -> float:
        if any(completion.count(literal) != 1 for literal in literals):
            return 0.0
        position, is_hole = 0, False
        for token in [*tokens, None]:  # None: the end of the text
            if token == "...":
                is_hole = True
                continue
            start = len(completion) if token is None else completion.find(token, position)
            # A hole must hold text; without one only whitespace may stand here.
            if start < 0 or is_hole != bool(completion[position:start].strip()):
                return 0.0
            position, is_hole = start + len(token or ""), False
        return 1.0

    return score
