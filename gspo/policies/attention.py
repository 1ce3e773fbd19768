"""Attention of our own inside unmodified Hugging Face models.

A forward pass that is given `attention=` (see `Network.hidden`) runs its layers' attention through that object instead
of the model's own implementation: transformers hands it each layer's rotated queries and un-repeated keys and values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "gspo"
"""Name under which transformers finds `_dispatch`."""


class Layer(NamedTuple):
    """What a layer says of its attention."""

    index: int
    scale: float
    """Multiplies the scores."""
    softcap: float | None
    """Bounds the scores by tanh."""
    window: int | None
    """Positions that a token sees, its own included, in a layer of sliding attention."""


class Attention(Protocol):
    """One forward pass's attention; called once per layer."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        """[R,H,L,D] query and [R,K,L,D] key, value (H a multiple of K) -> [R,L,H,D]."""
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
    index: Any = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = gspo_attention.attend(query, key, value, Layer(index, scale, softcap, sliding_window))
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
