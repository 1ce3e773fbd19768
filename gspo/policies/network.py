"""A Hugging Face causal language model seen as two functions: hidden states of a batch, and logits of a hidden state.

The head is applied apart from the body so that training never holds [B,T,V] logits. At construction the pair is
compared with the model's own logits; a model that treats its logits in a way not covered here is refused by name.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from gspo.policies.attention import Attention, attention_of_our_own
from gspo.policies.costs import NetworkShape, known_refusal, network_shape
from gspo.policies.linear_head import LinearHead, shape_logits
from gspo.policies.prefixes import pack
from gspo.policies.tree_attention import MaskedRows


class Network:
    """`model` is any transformers causal LM, or one wrapped by peft."""

    def __init__(self, model: nn.Module, checkpoints_activations: bool = False, is_compiled: bool = False) -> None:
        self.model = model
        self.checkpoints_activations = checkpoints_activations
        base = model.get_base_model() if type(model).__module__.startswith("peft.") else model
        self.config = base.config.get_text_config()
        self.body = base.base_model
        self._forward = torch.compile(self.body, dynamic=True) if is_compiled else self.body
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

    def with_model(self, model: nn.Module) -> "Network":
        """The same network under other weights, for scoring."""
        return Network(model)

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.output.weight.dtype

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def hidden(self, ids: Tensor, positions: Tensor | None = None, attention: Attention | None = None) -> Tensor:
        """[R,L] ids -> [R,L,D]. Without `attention` rows are right-padded and causal: padding lies behind real tokens.

        With it the layers attend through it and through nothing else; with gradient and `checkpoints_activations`
        each layer keeps its input only and is computed again in the backward pass.
        """
        given = {} if attention is None else {"gspo_attention": attention}
        with self._attending(attention), self._checkpointing(attention):
            forward = self._forward if torch.is_grad_enabled() else self.body
            out = forward(input_ids=ids, position_ids=positions, use_cache=False, **given)
        return out.last_hidden_state

    def _attending(self, attention: Attention | None) -> AbstractContextManager[None]:
        return nullcontext() if attention is None else attention_of_our_own(self.config)

    @contextmanager
    def _checkpointing(self, attention: Attention | None) -> Iterator[None]:
        """transformers' layers checkpoint themselves when told to, in training mode; dropout stays off below them."""
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            yield
            return
        # Layers ask the configuration for their attention when they run again, in the backward pass.
        again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), self._attending(attention)))
        layers = [m for m in self.body.modules() if isinstance(m, GradientCheckpointingLayer)]
        before = [layer.training for layer in layers]
        for layer in layers:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func, layer.training = True, again, True
        try:
            yield
        finally:
            for layer, was_training in zip(layers, before, strict=True):
                layer.gradient_checkpointing, layer.training = False, was_training

    @cached_property
    def shape(self) -> NetworkShape:
        """For the cost of a layout."""
        return network_shape(self.config, self.body)

    @cached_property
    def refusal(self) -> str:
        """Why sequences may not share a forward row here; empty where they may.

        Known reasons are named; then the model is asked: two sequences with a prefix in common, packed, must give
        what they give apart.
        """
        if self.model.training and _drops_out(self.model, self.config):
            return "dropout is on, and a shared token would drop out once for all its completions"
        return known_refusal(self.config) or self._probe()

    @torch.no_grad()
    def _probe(self) -> str:
        packed = pack([(1, 2, 3)] * 2, [(4, 5), (5, 4, 6)], 1)
        end, positions, ids = (
            torch.from_numpy(x)[None].to(self.device) for x in (packed.end, packed.positions, packed.ids)
        )
        try:
            together = self.hidden(ids % self.vocabulary, positions, MaskedRows(end, positions))[0]
        except (TypeError, ValueError, RuntimeError) as error:
            return f"its attention cannot be replaced ({error})"
        for where in packed.where:
            rows = torch.from_numpy(where).to(self.device)
            alone = self.hidden(ids[:, rows] % self.vocabulary)[0]
            gap = (together[rows] - alone).abs().max().item()
            tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
            if not gap <= tolerance * max(1.0, alone.abs().max().item()):
                return f"its answers differ by {gap:.2g} when sequences share a row"
        return ""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """[N,D] -> [N,V] logits; a `LinearHead` where the output layer is its weights and nothing else."""
        # Adapters, sharding, quantization and parametrizations each bring a class of their own.
        if type(self.output) is nn.Linear and not self.output._forward_hooks and not self.output._forward_pre_hooks:
            return LinearHead(self.output.weight, self.output.bias, self.scale, self.softcap)
        return lambda hidden: shape_logits(self.output(hidden), self.scale, self.softcap)

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


def _drops_out(model: nn.Module, config: Any) -> bool:
    """Whether a forward pass in training mode would be random."""
    in_attention = getattr(config, "attention_dropout", 0.0) or 0.0
    return in_attention > 0 or any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
