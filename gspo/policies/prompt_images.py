"""Images in prompts: what a vision-language model makes of them, once per prompt, as embeddings with ids of their own.

A processor turns an image into placeholder tokens and pixels. The model's own forward pass is run as far as its text
model, once for each distinct prompt, and the embeddings that arrive there are kept. In place of the placeholders the
prompt gets ids behind the vocabulary, one for each such embedding: from there on layouts, shared prefixes and samplers
see a prompt of ids like any other, and prompts that differ in their images differ in their ids.

Exact where the text model treats these embeddings as it treats tokens: one position each, causal attention. That is
compared with the model's own logits, and a model that does otherwise is refused by name.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Ids = tuple[int, ...]
Inputs = dict[str, np.ndarray]
"""What a processor made of a prompt's images, by the argument of the model that takes it; a batch of one."""
PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id")
"""Where configurations have the ids that stand for images."""


class _Arrived(Exception):
    """The embeddings are there: the rest of the pass is not needed."""


def text_model(body: nn.Module) -> nn.Module:
    """The part of a vision-language model that reads embeddings; any other model itself."""
    if not hasattr(getattr(body, "config", None), "vision_config"):
        return body
    found = (getattr(body, name, None) for name in ("language_model", "text_model"))
    return next((inner for inner in found if isinstance(inner, nn.Module)), body)


def placeholders(config: Any) -> frozenset[int]:
    found = (getattr(config, name, None) for name in PLACEHOLDERS)
    return frozenset(i for i in found if isinstance(i, int))


class PromptImages:
    """Prompts whose images have become embeddings [N,D], and the ids that name them: `first_id` + row.

    `model` is the whole vision-language model, head included.
    """

    def __init__(self, model: nn.Module, first_id: int) -> None:
        self.model, self.body, self.first_id = model, model.base_model, first_id
        self.placeholders = placeholders(model.config)
        self.table = torch.empty(0)
        self.is_checked = False

    def read(self, prompts: Sequence[Ids], inputs: Sequence[Inputs | None]) -> list[Ids]:
        """The prompts with ids of their own for their images; fills `table`. Gradient flows if it is on."""
        known: dict[tuple[Ids, bytes], Ids] = {}
        digests: dict[int, bytes] = {}  # the rows of a group share one object
        parts: list[Tensor] = []
        count, out = 0, []
        for prompt, given in zip(prompts, inputs, strict=True):
            if given is None:
                out.append(prompt)
                continue
            if id(given) not in digests:
                digests[id(given)] = _digest(given)
            key = (prompt, digests[id(given)])
            if key not in known:
                places = [i for i, token in enumerate(prompt) if token in self.placeholders]
                if not places:
                    raise ValueError(f"a prompt with images has no image token among its {len(prompt)} tokens")
                parts.append(self._embeddings(prompt, given)[places])
                own = list(prompt)
                for number, place in enumerate(places):
                    own[place] = self.first_id + count + number
                count += len(places)
                known[key] = tuple(own)
            out.append(known[key])
        self.table = torch.cat(parts) if parts else torch.empty(0)
        return out

    def embedded(self, ids: Tensor, embedding: nn.Module) -> Tensor:
        """[R,L] ids -> [R,L,D]."""
        is_image = ids >= self.first_id
        plain = embedding(ids.masked_fill(is_image, 0))
        if not self.table.numel():
            return plain
        seen = self.table[(ids - self.first_id).clamp(min=0)].to(plain.dtype)
        return torch.where(is_image[..., None], seen, plain)

    def _embeddings(self, prompt: Ids, given: Inputs) -> Tensor:
        """[L,D] that reach the text model."""
        device, kept = next(self.body.parameters()).device, {}

        def arrive(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            kept.update(kwargs)
            raise _Arrived

        ids = torch.tensor([prompt], device=device)
        handle = text_model(self.body).register_forward_pre_hook(arrive, with_kwargs=True)
        try:
            self.body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **self._on_device(given))
        except _Arrived:
            pass
        finally:
            handle.remove()
        self._check_positions(kept.get("position_ids"))
        return kept["inputs_embeds"][0]

    def _on_device(self, given: Inputs) -> dict[str, Tensor]:
        """Pixels in the dtype of the model, sizes and masks as they are."""
        like = next(self.body.parameters())
        tensors = {name: torch.as_tensor(value).to(like.device) for name, value in given.items()}
        return {name: x.to(like.dtype) if x.is_floating_point() else x for name, x in tensors.items()}

    @torch.no_grad()
    def check(self, prompt: Ids, given: Inputs, ours: Tensor) -> None:
        """Raises ValueError where the model's own logits [L,V] of a prompt are others."""
        ids = torch.tensor([prompt], device=ours.device)
        own = self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **self._on_device(given)
        ).logits[0]
        gap, scale = (own.float() - ours.float()).abs().max().item(), max(1.0, own.abs().max().item())
        tolerance = 1e-3 if own.dtype in (torch.float32, torch.float64) else 0.1
        if not gap <= tolerance * scale:
            raise ValueError(
                f"{type(self.model).__name__} treats images in a way that layouts here do not have (its logits differ "
                f"by {gap:.2g}): most likely the tokens of an image attend to each other in both directions"
            )
        self.is_checked = True

    def _check_positions(self, positions: Tensor | None) -> None:
        if positions is None:
            return
        plain = torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
        if not torch.equal(positions, plain):
            raise ValueError(
                f"{type(self.body).__name__} gives the tokens of an image positions in two dimensions (M-RoPE), which "
                "layouts here do not have; take a model that counts them one by one (LLaVA, SmolVLM, InternVL, ...)"
            )


def _digest(given: Inputs) -> bytes:
    """The same for the same pixels."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(given):
        array = np.ascontiguousarray(given[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()


@contextmanager
def seen(
    images: PromptImages | None,
    prompts: Sequence[Ids],
    inputs: Sequence[Any] | None,
    is_trained: bool,
    logits: Callable[[Ids], Tensor],
) -> Iterator[Sequence[Ids]]:
    """The prompts as ids, while a network looks up what stands behind them.

    The first prompt with an image is read by both the network (`logits`) and the model itself.
    """
    if inputs is None or all(given is None for given in inputs):
        yield prompts
        return
    if images is None:
        raise ValueError("the prompt has images and the model reads text alone")
    before = images.table
    try:
        # Around the reading alone: what is open while a generator waits would reach whoever runs meanwhile.
        with torch.set_grad_enabled(is_trained and torch.is_grad_enabled()):
            found = images.read(prompts, inputs)
            if not images.is_checked:
                first = next(i for i, given in enumerate(inputs) if given is not None)
                with torch.no_grad():
                    images.check(prompts[first], inputs[first], logits(found[first]))
        yield found
    finally:
        images.table = before
