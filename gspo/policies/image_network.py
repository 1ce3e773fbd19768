"""A model of image tokens: prompts in front of image codes, which live in its vocabulary or in modules of their own.

Rows are laid out as prompt, then codes, with prompts padded on the left: all codes of a batch stand at the same places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Codes(Protocol):
    """Where a model keeps its image codes: their number, and how they are embedded, predicted and left unprompted."""

    @property
    def levels(self) -> int: ...
    def check(self, model: nn.Module) -> None:
        """Raises ValueError where the model has no such codes."""
        ...

    def body(self, model: nn.Module) -> nn.Module: ...
    def embed(self, model: nn.Module, codes: Tensor) -> Tensor: ...
    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """[...,D] -> [...,levels], of the image codes alone."""
        ...

    def unconditional(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """What stands in place of a prompt for the unconditional model of guidance."""
        ...


@dataclass(frozen=True, kw_only=True)
class VocabularyCodes:
    """`levels` tokens of the vocabulary in a row, from `first_id` on."""

    levels: int
    first_id: int
    null_ids: tuple[int, ...]
    """The prompt of the unconditional model."""

    def check(self, model: nn.Module) -> None:
        size = model.get_input_embeddings().weight.shape[0]
        if self.first_id < 0 or self.first_id + self.levels > size:
            raise ValueError(
                f"policy.levels = {self.levels} image tokens from id {self.first_id} on do not fit into a vocabulary "
                f"of {size}"
            )

    def body(self, model: nn.Module) -> nn.Module:
        return model.base_model

    def embed(self, model: nn.Module, codes: Tensor) -> Tensor:
        return model.get_input_embeddings()(codes + self.first_id)

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        output = model.get_output_embeddings()
        rows = slice(self.first_id, self.first_id + self.levels)
        bias = None if output.bias is None else output.bias[rows]
        return nn.functional.linear(hidden, output.weight[rows], bias)

    def unconditional(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        return self.null_ids


@dataclass(frozen=True, kw_only=True)
class JanusCodes:
    """transformers' Janus: embeddings, aligner and head of image codes are modules of their own.

    The unconditional prompt is the prompt with all but its begin tokens padded, as transformers generates.
    """

    levels: int
    begin_ids: tuple[int, ...]
    pad_id: int

    def check(self, model: nn.Module) -> None:
        size = model.model.generation_embeddings.weight.shape[0]
        if self.levels != size:
            raise ValueError(f"policy.levels is {self.levels}, and the model has {size} image codes")

    def body(self, model: nn.Module) -> nn.Module:
        return model.model.language_model

    def embed(self, model: nn.Module, codes: Tensor) -> Tensor:
        return model.prepare_embeddings_for_image_generation(codes)

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        return model.model.generation_head(hidden)

    def unconditional(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i if i in self.begin_ids else self.pad_id for i in prompt)


class ImageNetwork:
    """A model that writes image codes behind a prompt. Raises ValueError where it has no such codes."""

    def __init__(self, model: nn.Module, codes: Codes, pad_id: int) -> None:
        codes.check(model)
        self.model, self.codes, self.pad_id = model, codes, pad_id

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def with_model(self, model: nn.Module) -> "ImageNetwork":
        """The same network under other weights, for scoring."""
        return ImageNetwork(model, self.codes, self.pad_id)

    def head(self, hidden: Tensor) -> Tensor:
        """[...,D] -> [...,levels] logits of the image codes alone."""
        return self.codes.logits(self.model, hidden)

    def embed_prompt(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.codes.embed(self.model, codes)

    def states(self, prompts: Sequence[tuple[int, ...]], codes: Tensor) -> Tensor:
        """[N,L,D]: hidden states that predict each of the codes [N,L], given those before it."""
        ids, mask = self._padded(prompts)
        given = torch.cat([self.embed_prompt(ids), self.embed_codes(codes[:, :-1])], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(codes), codes.shape[1] - 1)], dim=1)
        hidden = self._run(given, mask, None)
        return hidden[:, ids.shape[1] - 1 :]

    def start(self, prompts: Sequence[tuple[int, ...]]) -> "Drawing":
        """Images of these prompts, to be drawn token by token."""
        return Drawing(self, prompts)

    def _padded(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """([N,P] ids, [N,P] which are real), on the device."""
        width = max(len(p) for p in prompts)
        ids = [(self.pad_id,) * (width - len(p)) + tuple(p) for p in prompts]
        real = [(0,) * (width - len(p)) + (1,) * len(p) for p in prompts]
        return torch.tensor(ids, device=self.device), torch.tensor(real, device=self.device)

    def _run(self, given: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Embeddings [N,T,D] behind what the cache holds; `mask` [N, past + T]."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -given.shape[1] :]
        out = self.codes.body(self.model)(
            inputs_embeds=given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state


class Drawing:
    """Rows under way, with their key-value cache."""

    def __init__(self, network: ImageNetwork, prompts: Sequence[tuple[int, ...]]) -> None:
        from transformers import DynamicCache

        self.network = network
        self.cache = DynamicCache()
        ids, self.mask = network._padded(prompts)
        self.logits = self._logits(network.embed_prompt(ids))
        """[N,levels] of the next code."""

    def advance(self, codes: Tensor) -> None:
        """Feed the codes [N] that were drawn."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(codes), 1)], dim=1)
        self.logits = self._logits(self.network.embed_codes(codes[:, None]))

    def _logits(self, given: Tensor) -> Tensor:
        return self.network.head(self.network._run(given, self.mask, self.cache)[:, -1])
