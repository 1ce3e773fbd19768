"""Prompts with images: through the model's processor, into token ids and what else the model takes."""

from typing import Any

import numpy as np

IMAGE_COLUMNS = ("images", "image")
"""Columns of the data that hold a prompt's images: pictures, arrays, or paths."""
NOT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def images_of(row: dict[str, Any]) -> list[Any]:
    """The images of a row, in the order in which its prompt names them."""
    for name in IMAGE_COLUMNS:
        if row.get(name) is not None:
            found = row[name]
            return list(found) if isinstance(found, list | tuple) else [found]
    return []


def read_with_images(processor: Any, text: str, images: list[Any]) -> tuple[list[int], dict[str, np.ndarray]]:
    """(token ids, inputs) of a prompt that holds one of the processor's image tokens for each image."""
    try:
        made = processor(text=text, images=[_loaded(image) for image in images], return_tensors="np")
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"the processor cannot read the prompt {str(text)[:60]!r} with {len(images)} images: {error}"
        ) from error
    return np.asarray(made["input_ids"])[0].tolist(), {
        name: np.asarray(value) for name, value in made.items() if name not in NOT_INPUTS
    }


def _loaded(image: Any) -> Any:
    """A picture from a path; anything else as it is."""
    if not isinstance(image, str):
        return image
    from transformers.image_utils import load_image

    return load_image(image)
