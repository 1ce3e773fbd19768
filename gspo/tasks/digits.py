"""Handwritten digits, 8x8 grey (scikit-learn's copy of the UCI set): which digit an image shows, or each of its pixels.

A held-out image is never trained; the split does not move with the run's seed.
"""

from typing import Any

import numpy as np

from gspo.tasks.base import SPLIT_SEED, Dataset, Row, answer_equals, option, permutation, refuse_unknown

DENSE_INK = 0.5
"""Brightness from which a pixel belongs to the digit."""
VARIANTS = ("plain", "rotated", "noised", "inverted")


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """([1797,1,8,8] in 0..1, [1797] digits)."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ValueError("the digits come with scikit-learn; run: pip install 'gspo[vision]'") from error
    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target.astype(np.int64)


def variant(images: np.ndarray, name: str, seed: int = SPLIT_SEED) -> np.ndarray:
    """Images [N,1,8,8] as a test set of another kind: turned by 25 degrees, noised by 0.25, or inverted."""
    if name == "rotated":
        from scipy.ndimage import rotate

        return rotate(images, 25, axes=(3, 2), reshape=False, order=1).astype(np.float32)
    if name == "noised":
        noise = np.random.default_rng(seed).normal(0, 0.25, images.shape)
        return np.clip(images + noise, 0, 1).astype(np.float32)
    return 1 - images if name == "inverted" else images


def split(held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held out)."""
    order = permutation(SPLIT_SEED, 0, 1797)
    return order[held_out:], order[:held_out]


def digits(options: dict[str, Any], seed: int, held_out_prompts: int) -> Dataset:
    """Options: labelled (training images whose label is used, 0: all), dense, held_out (kind of held-out images).

    Pre-training sees all training images, and no label.
    """
    refuse_unknown("digits", options, ("labelled", "dense", "held_out"))
    labelled, dense = option(options, "labelled", 0), option(options, "dense", False)
    kind = option(options, "held_out", "plain")
    if kind not in VARIANTS:
        raise ValueError(f"task option held_out = {kind!r} must be one of {', '.join(VARIANTS)}")
    images, target = load_images()
    train, held_out = split(held_out_prompts)
    used = train[:labelled] if labelled else train
    shown = variant(images, kind)
    row = _dense_row if dense else _row
    rows = [row(i, images[i], images[i], int(target[i])) for i in train.tolist()]
    return Dataset(
        name="digits",
        train=rows[: len(used)],
        cold_start=rows,
        held_out=[row(i, shown[i], images[i], int(target[i])) for i in held_out.tolist()],
        rewards=(),
        is_correct=_pixels_right if dense else answer_equals,
        reading=f"{len(used):,} of {len(train):,} images of digits with labels, {len(held_out):,} held out ({kind})",
    )


def _row(number: int, image: np.ndarray, original: np.ndarray, digit: int) -> Row:
    return {"prompt": f"image {number}", "image": image, "answer": str(digit)}


def _dense_row(number: int, image: np.ndarray, original: np.ndarray, digit: int) -> Row:
    """Class 0: paper; class 1 + digit: its ink."""
    labels = np.where(original[0] >= DENSE_INK, digit + 1, 0).ravel().tolist()
    return {"prompt": f"image {number}", "image": image, "labels": labels, "answer": " ".join(map(str, labels))}


def _pixels_right(completion: str, row: Row) -> float:
    """Share of pixels whose class is right."""
    return float(np.mean(np.array(completion.split(), dtype=int) == np.array(row["labels"])))
