"""A masked diffusion language model seen as one function: ids with masks in them -> logits of every position.

What makes it one is tried, not believed: it has a token for what is hidden, and it reads in both directions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class DiffusionNetwork:
    """`model` is any transformers model of logits at every position (BERT and its kin, LLaDA, Dream).

    logit_shift 0: the logits at a position predict it (LLaDA); 1: those before it do (Dream).
    """

    def __init__(self, model: nn.Module, mask_id: int, logit_shift: int = 0) -> None:
        self.model = model
        self.mask_id = mask_id
        self.logit_shift = logit_shift
        base = model.get_base_model() if type(model).__module__.startswith("peft.") else model
        self.config = base.config
        self.name = type(base).__name__
        self.positions = getattr(self.config, "max_position_embeddings", 0) or 0
        """Most tokens that go in; 0: not known."""
        known = base.get_input_embeddings().weight.shape[0]
        if not 0 <= mask_id < known:
            raise ValueError(f"{self.name} has {known} token embeddings, none of them for mask token {mask_id}")
        refuse_causal(model)

    def with_model(self, model: nn.Module) -> "DiffusionNetwork":
        """The same network under other weights, for scoring."""
        return DiffusionNetwork(model, self.mask_id, self.logit_shift)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def logits(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T V"]:
        """Those that predict each position. Rows have no padding: what a model makes of it never matters."""
        if self.positions and ids.shape[1] > self.positions:
            raise ValueError(
                f"a prompt and its completion have {ids.shape[1]} positions and {self.name} knows {self.positions}: "
                "lower sampling.max_completion_tokens (gspo eval and sample: --max-tokens)"
            )
        logits = self.model(input_ids=ids).logits
        if self.logit_shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return logits


@torch.no_grad()
def refuse_causal(model: nn.Module) -> None:
    """A causal model says the same at a position whatever comes behind it: ValueError."""
    ids = torch.zeros(2, 8, dtype=torch.long, device=next(model.parameters()).device)
    ids[1, -1] = 1
    first, other = model(input_ids=ids).logits[:, 1].float()
    if (first - other).abs().max() <= 1e-6 * first.abs().max():
        raise ValueError(
            f"{type(model).__name__} is a causal model (a later token changes nothing before it), and policy = "
            '"diffusion" predicts what is hidden from both sides: use a masked model, or policy = "causal_lm"'
        )


def mask_token(tokenizer: Any, model: nn.Module, name: str) -> int:
    """The id that stands for what is hidden, by the tokenizer or else the model's configuration; else ValueError."""
    found = getattr(tokenizer, "mask_token_id", None)
    found = getattr(model.config, "mask_token_id", None) if found is None else found
    if found is None:
        refuse_causal(model)
        raise ValueError(
            f'model {name!r} has no mask token: policy = "diffusion" needs a masked model, whose tokenizer names a '
            "mask_token or whose config.json has mask_token_id"
        )
    return int(found)
