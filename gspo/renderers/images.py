"""Words and codes: prompts are text, completions the codes of an image, written as characters 0-9a-z or as numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gspo.renderers.chat import Prompt, Renderer

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class ImageRenderer:
    """What `Renderer` is for completions of text. `decode` makes an image array of codes."""

    def __init__(self, words: Renderer, levels: int, decode: Callable[[tuple[int, ...]], Any]) -> None:
        self.words, self.levels, self._decode = words, levels, decode

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        return self.words.prompt_ids(prompt)

    def read(self, row: Mapping[str, Any]) -> tuple[tuple[int, ...], None]:
        """The token ids of a data row's prompt."""
        return self.prompt_ids(row["prompt"]), None

    def prompt_text(self, ids: tuple[int, ...]) -> str:
        return self.words.prompt_text(ids)

    def text(self, ids: tuple[int, ...]) -> str:
        return written(ids, self.levels)

    ended_text = text

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """The codes that `text` writes. Raises ValueError for what is no code."""
        return read_codes(text, self.levels)

    def answer(self, text: str) -> str:
        return text

    def pieces(self, ids: tuple[int, ...]) -> list[str]:
        return [written((i,), self.levels) for i in ids]

    def shown(self, completions: Sequence[tuple[int, ...]]) -> dict[str, list[Any]]:
        """The decoded images, as rewards find them in column `images`."""
        return {"images": [self.image(ids) for ids in completions]}

    def image(self, ids: tuple[int, ...]) -> np.ndarray:
        """The decoded image. Raises ValueError with the decoder's own words where it fails."""
        try:
            return np.asarray(self._decode(ids))
        except Exception as error:  # a user's decoder may raise anything
            raise ValueError(
                f"the image decoder failed on {len(ids)} codes: {type(error).__name__}: {str(error) or 'no message'}"
            ) from error


def written(codes: tuple[int, ...], levels: int) -> str:
    """One character per code, up to 36 levels; else numbers."""
    return "".join(DIGITS[i] for i in codes) if levels <= len(DIGITS) else " ".join(map(str, codes))


def read_codes(text: str, levels: int) -> tuple[int, ...]:
    """What `written` wrote."""
    try:
        parts = [DIGITS.index(c) for c in text.strip()] if levels <= len(DIGITS) else [int(x) for x in text.split()]
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not an image of {levels} levels") from None
    if any(not 0 <= code < levels for code in parts):
        raise ValueError(f"{text[:40]!r} has codes beyond {levels} levels")
    return tuple(parts)


def grid(height: int, width: int, levels: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """The decoder of raster codes: a grey image [height, width] in 0..1."""

    def decode(codes: tuple[int, ...]) -> np.ndarray:
        return (np.array(codes, dtype=np.float32) / (levels - 1)).reshape(height, width)

    return decode
