"""A Hugging Face causal language model seen as two functions: hidden states of a batch, and logits of a hidden state.

The head is applied apart from the body so that training never holds [B,T,V] logits. At construction the pair is
compared with the model's own logits; a model that treats its logits in a way not covered here is refused by name.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gspo.policies.attention import Attention, attention_of_our_own


class Network:
    """`model` is any transformers causal LM, or one wrapped by peft."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        base = model.get_base_model() if type(model).__module__.startswith("peft.") else model
        self.config = base.config.get_text_config()
        self.body = base.base_model
        self.output = base.get_output_embeddings()
        self.softcap = getattr(self.config, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them.
        self.scale = getattr(self.config, "logit_scale", None) or 1.0 / (
            getattr(self.config, "logits_scaling", None) or 1
        )
        if self.output is None:
            raise ValueError(f"{type(base).__name__} has no output embeddings: not a causal language model")
        self.vocabulary = self.output.weight.shape[0]
        self._check_head(base)

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.output.weight.dtype

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        attention: Attention | None = None,
    ) -> Tensor:
        """[R,L] right-padded ids -> [R,L,D]. Without `mask` attention is causal: padding lies behind real tokens.

        With `attention` the layers attend through it, and through nothing else.
        """
        if attention is not None:
            with attention_of_our_own(self.config):
                out = self.body(input_ids=ids, position_ids=positions, use_cache=False, gspo_attention=attention)
            return out.last_hidden_state
        if mask is not None and self.config._attn_implementation == "eager":
            # Eager attention adds its mask to the scores.
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(self.dtype).min
            )
        out = self.body(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return out.last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """[N,D] -> [N,V] logits."""
        logits = self.output(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def new_cache(self) -> Any:
        """An empty key-value cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.config)

    def next_logits(self, ids: Tensor, cache: Any, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Feed [R,L] ids behind the cache; [R,V] logits after the last of them. `mask` [R, past + L] marks real ids."""
        out = self.body(
            input_ids=ids, past_key_values=cache, position_ids=positions, attention_mask=mask, use_cache=True
        )
        return self.head(out.last_hidden_state[:, -1])

    @torch.no_grad()
    def _check_head(self, base: nn.Module) -> None:
        was_training = self.model.training
        self.model.eval()
        ids = torch.arange(4, device=self.device)[None] % self.vocabulary
        own = base(input_ids=ids, use_cache=False).logits[0].float()
        ours = self.head(self.hidden(ids)[0]).float()
        self.model.train(was_training)
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
        if not torch.allclose(own, ours, atol=tolerance * max(1.0, own.abs().max().item())):
            raise ValueError(
                f"{type(base).__name__} changes its logits after the output layer in a way gspo does not know "
                f"(largest difference {(own - ours).abs().max().item():.3g}); please report the model"
            )
