"""The words of a policy over classes: the classes' names."""

from collections.abc import Sequence

import numpy as np


class ClassRenderer:
    """What `Renderer` is for tokens. A choice of one class is its name; of one for every pixel, their numbers."""

    def __init__(self, classes: Sequence[str]) -> None:
        if len(classes) < 2:
            raise ValueError(f"the set of classes is {list(classes)}: a choice needs at least two")
        self.classes = tuple(classes)
        self._numbers = {name: number for number, name in enumerate(classes)}

    def number(self, name: str) -> int:
        """Of a class. Raises ValueError for a name that is none."""
        if name not in self._numbers:
            raise ValueError(f"{name!r} is none of the {len(self.classes)} classes: {', '.join(self.classes)[:200]}")
        return self._numbers[name]

    def chosen(self, probabilities: np.ndarray) -> str:
        """The likeliest class of each question, [Q,C]."""
        best = probabilities.argmax(axis=1)
        return self.classes[best[0]] if len(best) == 1 else " ".join(map(str, best))

    def prompt_text(self, ids: tuple[int, ...]) -> str:
        return ""

    def text(self, ids: tuple[int, ...]) -> str:
        return " ".join(self.pieces(ids))

    def answer(self, text: str) -> str:
        return text

    def pieces(self, ids: tuple[int, ...]) -> list[str]:
        return [self.classes[i] for i in ids]
