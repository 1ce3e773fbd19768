"""What a forward pass costs under each layout, from lengths and the shape of the network: a rule, not a timing.

Costs are in units of one multiply-add of the linear layers, forward; a backward pass is taken to cost the same
multiple of it everywhere. The constants were fitted on CPUs with float32 matrix products of 70-80 GFLOP/s a core.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from gspo.policies.routing import experts_of

CALL = 1.5e6
"""Multiply-adds that go by while one attention kernel is called on a block, forward and backward."""

MASKED = 1.2
"""A masked query-key pair against one of a block without a mask."""


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What costs depend on."""

    layers: int
    linear: int
    """Weights a token meets in one layer: multiply-adds."""
    pair: int
    """Multiply-adds per query-key pair of one layer: two products over all heads."""
    is_capped: bool
    """Whether scores are bounded by a tanh, which no fused kernel does."""
    window: int | None
    """Positions that the layers of sliding attention see, where there are any."""

    def needs_mask(self, longest: int) -> bool:
        """Whether some layer cannot be attended to by plain rectangles when sequences have `longest` tokens."""
        return self.is_capped or (self.window is not None and self.window < longest)


def network_shape(config: Any, body: nn.Module) -> NetworkShape:
    """From a model's text configuration and its layers, which may be without storage."""
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    embedded = {id(p) for m in body.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    used = getattr(config, "num_experts_per_tok", None) or 1
    experts = experts_of(config) or used
    weights = [p for p in body.parameters() if p.ndim > 1 and id(p) not in embedded]
    # A mixture's experts are stacked in three dimensions; a token meets a few of them.
    met = sum(p.numel() * used // experts if p.ndim == 3 else p.numel() for p in weights)
    return NetworkShape(
        layers=config.num_hidden_layers,
        linear=met // config.num_hidden_layers,
        pair=2 * heads * width,
        is_capped=bool(getattr(config, "attn_logit_softcapping", None)),
        window=getattr(config, "sliding_window", None) if slides else None,
    )


def known_refusal(config: Any) -> str:
    """Why sequences may not share a forward row, as far as a configuration tells; empty where it names no reason."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has {', '.join(sorted(kinds))} layers, whose tokens meet outside attention"
    # Plain top-k routing looks at one token at a time; a load-balancing loss is ours, and counts tokens by sequence.
    if any(value for name, value in vars(config).items() if "expert_capacity" in name or "capacity_factor" in name):
        return "its experts have a capacity, which counts tokens"
    return ""


def rows_cost(shape: NetworkShape, rows: int, length: int, *, is_masked: bool) -> float:
    """`rows` x `length` tokens through ordinary attention."""
    pairs = masked_pairs_cost(shape, rows, length) / (1 if is_masked else MASKED)
    return shape.layers * (rows * length * shape.linear + pairs + CALL)


def masked_pairs_cost(shape: NetworkShape, rows: int, length: int) -> float:
    """Attention of one layer over rows under a mask."""
    return rows * length**2 * MASKED * shape.pair


def blocks_cost(shape: NetworkShape, tokens: int, pairs: int, blocks: int) -> float:
    """One row of `tokens`, attended to block by block."""
    return shape.layers * (tokens * shape.linear + pairs * shape.pair + blocks * CALL)
