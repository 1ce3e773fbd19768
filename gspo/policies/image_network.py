"""A model of image tokens seen as five functions: embeddings of prompts and of codes, a body, a head over codes.

Rows are laid out as prompt, then codes, with prompts padded on the left: all codes of a batch stand at the same places.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ImageNetwork:
    """A causal language model whose vocabulary has `levels` image tokens in a row from `first_id` on.

    `null_ids`: the prompt of the unconditional model, for guidance; it stands in place of a whole prompt.
    """

    def __init__(self, model: nn.Module, *, levels: int, first_id: int, null_ids: Sequence[int], pad_id: int) -> None:
        self.model, self.levels, self.first_id = model, levels, first_id
        self.null_ids, self.pad_id = tuple(null_ids), pad_id
        self.check()

    def check(self) -> None:
        """Raises ValueError where the model has no such tokens."""
        size = self.model.get_input_embeddings().weight.shape[0]
        if self.first_id < 0 or self.first_id + self.levels > size:
            raise ValueError(
                f"policy.levels = {self.levels} image tokens from id {self.first_id} on do not fit into a vocabulary "
                f"of {size}"
            )

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
        return type(self)(model, levels=self.levels, first_id=self.first_id, null_ids=self.null_ids, pad_id=self.pad_id)

    def unconditional(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        return self.null_ids

    @property
    def body(self) -> nn.Module:
        return self.model.base_model

    def embed_prompt(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(codes + self.first_id)

    def head(self, hidden: Tensor) -> Tensor:
        """[...,D] -> [...,levels] logits of the image tokens alone."""
        output = self.model.get_output_embeddings()
        rows = slice(self.first_id, self.first_id + self.levels)
        bias = None if output.bias is None else output.bias[rows]
        return nn.functional.linear(hidden, output.weight[rows], bias)

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
        out = self.body(
            inputs_embeds=given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state


class JanusNetwork(ImageNetwork):
    """transformers' Janus: embeddings, aligner and head of image codes are modules of their own.

    The unconditional prompt is the prompt with all but its begin tokens padded, as transformers generates.
    """

    def check(self) -> None:
        size = self.model.model.generation_embeddings.weight.shape[0]
        if self.levels != size:
            raise ValueError(f"policy.levels is {self.levels}, and the model has {size} image codes")

    @property
    def body(self) -> nn.Module:
        return self.model.model.language_model

    def unconditional(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        kept = {*self.null_ids}
        return tuple(i if i in kept else self.pad_id for i in prompt)

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.model.prepare_embeddings_for_image_generation(codes)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.model.generation_head(hidden)


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
