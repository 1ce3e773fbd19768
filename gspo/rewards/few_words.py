"""An answer in few words."""

import re
from collections.abc import Callable


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text.lower())


def few_words(*, fewer_than: int = 10) -> Callable[[object, str], float]:
    """1 if the completion has 1..fewer_than-1 words and is an answer, else 0. Range {0, 1}.

    An answer brings at least one word (letters, not only digits) that the prompt does not have, uses no word
    more than twice, and is one line.
    """
    if fewer_than < 2:
        raise ValueError(f"fewer_than = {fewer_than} must be at least 2")

    def score(prompt: object, completion: str) -> float:
        asked = prompt if isinstance(prompt, str) else " ".join(str(m["content"]) for m in prompt)
        words = words_of(completion)
        is_new = any(any(c.isalpha() for c in word) for word in set(words) - set(words_of(asked)))
        is_varied = all(words.count(word) <= 2 for word in words)
        is_line = "\n" not in completion.strip()
        return float(0 < len(words) < fewer_than and is_new and is_varied and is_line)

    return score
