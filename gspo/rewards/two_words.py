"""One sentence that uses the given words."""

import re
from collections.abc import Callable

END = re.compile(r"[.!?]+(?=[\"')\]\u201d\u2019]*(?:\s|$))")
"""Where a sentence ends: its marks, then at most closing quotes or brackets, then a space or the end."""


def is_one_sentence(text: str) -> bool:
    """One line with exactly one sentence end, at its end. "Mr. Low left." counts as two sentences."""
    text = text.strip()
    ends = list(END.finditer(text))
    return "\n" not in text and len(ends) == 1 and not text[ends[0].end() :].strip("\"')]\u201d\u2019")


def two_words() -> Callable[[str, list[str]], float]:
    """1 if the completion is one sentence that has every word of column `words` as a whole word (any case) and
    at least one word more than those; else 0. Range {0, 1}."""

    def score(completion: str, words: list[str]) -> float:
        written = re.findall(r"[\w'-]+", completion.lower())
        has_all = all(word.lower() in written for word in words)
        return float(has_all and len(written) > len(words) and is_one_sentence(completion))

    return score
