"""Attention of our own inside unmodified Hugging Face models.

A forward pass that is given `attention=` (see `Network.hidden`) runs its layers' attention through that object instead
of the model's own implementation: transformers hands it each layer's rotated queries and un-repeated keys and values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "gspo"
"""Name under which transformers finds `_dispatch`."""


class Attention(Protocol):
    """One forward pass's attention; called once per layer."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """[R,H,L,D] query and [R,K,L,D] key, value (H a multiple of K) -> [R,L,H,D].

        `softcap` bounds the scores by tanh; a layer of sliding attention sees `window` positions, its own included.
        """
        ...


def _dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    gspo_attention: Attention,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if s_aux is not None:
        raise ValueError(f"{type(module).__name__} has attention sinks")
    layer: Any = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = gspo_attention.attend(query, key, value, layer=layer, scale=scale, softcap=softcap, window=sliding_window)
    return out, None


AttentionInterface.register(NAME, _dispatch)


@contextmanager
def attention_of_our_own(config: Any) -> Iterator[None]:
    """Within it, models of this (text) configuration attend through the object passed as `gspo_attention`."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
