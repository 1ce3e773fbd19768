"""Images of digits on demand: "seven thick black". Real 8x8 digits, restyled, in a few levels of grey.

A prompt names a digit, a stroke (thin: as it was written; thick: dilated) and a colour (white on black, or inverted).
Some combinations are in no training row: even digits never thick and black, odd ones never thin and white.
"""

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from gspo.rewards.base import RewardConfig
from gspo.tasks.base import Dataset, Row, option, permutation, refuse_unknown
from gspo.tasks.digits import load_images

SIDE, LEVELS = 8, 8
"""Pixels of a row, and levels of grey; a code is a level, in raster order."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES, COLOURS = ("thin", "thick"), ("white", "black")
ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
NULL_PROMPT = "."
HELD_OUT = ("unseen_pairs", "reordered", "in_domain")
JUDGES = {"weak": (0, 400), "strong": (0, 900), "metric": (900, 1797)}
"""Which images of the fixed permutation each judge learns from; the generator starts from those that the metric's does
not."""


Style = tuple[int, int, int]


def styles() -> list[Style]:
    """Every (digit, stroke, colour)."""
    return list(product(range(10), range(2), range(2)))


def is_unseen(style: Style) -> bool:
    """Whether it is kept out of training."""
    digit, stroke, colour = style
    return (stroke, colour) == ((1, 1) if digit % 2 == 0 else (0, 0))


def words(style: Style, order: tuple[int, ...] = (0, 1, 2)) -> str:
    named = [names[i] for names, i in zip((DIGITS, STROKES, COLOURS), style, strict=True)]
    return " ".join(named[i] for i in order)


def styled(images: np.ndarray, style: Style) -> np.ndarray:
    """Images [N,8,8] in 0..1 in another style."""
    from scipy.ndimage import grey_dilation

    _, stroke, colour = style
    made = grey_dilation(images, size=(1, 2, 2)) if stroke else images
    return 1 - made if colour else made


def codes_of(images: np.ndarray) -> np.ndarray:
    """[N,8,8] in 0..1 -> codes [N,64]."""
    return np.rint(images * (LEVELS - 1)).astype(int).reshape(len(images), -1)


@lru_cache(maxsize=4)
def originals(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """([N,8,8], [N] digits) number first..last of a fixed permutation."""
    images, target = load_images()
    chosen = permutation(25_052_017, 0, len(images))[first:last]
    return images[chosen, 0], target[chosen]


@lru_cache(maxsize=4)
def styled_set(judge: str, seen_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """(images [N,8,8], styles [N,3]) of a judge's originals, quantised; weak: each original in one style."""
    images, target = originals(*JUDGES[judge])
    rng = np.random.default_rng(25_052_017)
    made, kept = [], []
    for digit in range(10):
        own = images[target == digit]
        some = [s for s in styles() if s[0] == digit and not (seen_only and is_unseen(s))]
        if judge == "weak":
            for image, i in zip(own, rng.integers(len(some), size=len(own)), strict=True):
                made.append(styled(image[None], some[i]))
                kept.append(np.array([some[i]]))
            continue
        for style in some:
            made.append(styled(own, style))
            kept.append(np.repeat([style], len(own), axis=0))
    codes = codes_of(np.concatenate(made))
    return codes.reshape(-1, SIDE, SIDE) / (LEVELS - 1), np.concatenate(kept)


def digit_images(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """Options: held_out (unseen_pairs, reordered words, or in_domain), unconditional (share of cold-start rows whose
    prompt is empty, which guidance needs)."""
    refuse_unknown("digit_images", options, ("held_out", "unconditional"))
    kind, share = option(options, "held_out", "unseen_pairs"), option(options, "unconditional", 0.1)
    if kind not in HELD_OUT:
        raise ValueError(f"task option held_out = {kind!r} must be one of {', '.join(HELD_OUT)}")
    seen = [style for style in styles() if not is_unseen(style)]
    asked = [style for style in styles() if is_unseen(style)] if kind == "unseen_pairs" else seen
    order = (2, 1, 0) if kind == "reordered" else (0, 1, 2)
    return Dataset(
        name="digit_images",
        train=[_row(style) for style in seen],
        held_out=[_row(style, order) for style in asked[:: max(1, len(asked) // max(held_out_prompts, 1))]],
        rewards=(RewardConfig(name="digit_image", options={"judge": "strong"}),),
        is_correct=_is_right,
        reading=f"{len(seen)} prompts for images of digits, {len(asked)} held out ({kind.replace('_', ' ')})",
        cold_start=_examples(share),
    )


def _row(style: Style, order: tuple[int, ...] = (0, 1, 2)) -> Row:
    return {"prompt": words(style, order), "style": list(style), "answer": words(style)}


def _examples(unconditional: float) -> list[Row]:
    """Images in every seen style, each original of the weak and strong judges in a few of them."""
    from gspo.renderers.images import written

    rows: list[Row] = []
    rng = np.random.default_rng(25_052_018)
    images, target = originals(0, JUDGES["strong"][1])
    for image, digit in zip(images, target.tolist(), strict=True):
        some = [style for style in styles() if style[0] == digit and not is_unseen(style)]
        for i in rng.choice(len(some), size=min(6, len(some)), replace=False).tolist():
            codes = codes_of(styled(image[None], some[i]))[0]
            prompt = NULL_PROMPT if rng.random() < unconditional else words(some[i])
            rows.append({"prompt": prompt, "completion": written(tuple(codes.tolist()), LEVELS)})
    return rows


def _is_right(text: str, row: Row) -> bool:
    """By the rule metric: the digit, and all of its style."""
    from gspo.renderers.images import read_codes
    from gspo.rewards.digit_image import rule_checks

    image = np.array(read_codes(text, LEVELS)).reshape(SIDE, SIDE) / (LEVELS - 1)
    return bool(rule_checks(image[None], np.array([row["style"]])).all())
