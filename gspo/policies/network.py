"""A Hugging Face causal language model seen as two functions: hidden states of a batch, and logits of a hidden state.

The head is applied apart from the body so that training never holds [B,T,V] logits. At construction the pair is
compared with the model's own logits; a model that treats its logits in a way not covered here is refused by name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from gspo.policies.attention import Attention, attention_of_our_own
from gspo.policies.costs import NetworkShape, known_refusal, network_shape
from gspo.policies.likelihood import Head
from gspo.policies.linear_head import LinearHead, shape_logits
from gspo.policies.prefixes import Ids, pack
from gspo.policies.prompt_images import PromptImages, seen, text_model
from gspo.policies.routing import ExpertLayers, Pass, Routers, experts_of, find_routers
from gspo.policies.tree_attention import MaskedRows


class SpreadTokens(Protocol):
    """Ranks that each run some tokens of every row."""

    def own(
        self, ids: Tensor, positions: Tensor | None, attention: Attention | None
    ) -> tuple[Tensor, Tensor, Attention]:
        """What this rank runs of [R,L] rows."""
        ...

    def own_pass(self, routes: Pass, rows: int, length: int) -> Pass:
        """What this rank's routers ask."""
        ...

    def fill(self, routes: Pass, own: Pass, rows: int, length: int) -> None:
        """Write down what the routers of all ranks chose."""
        ...

    def together(self, hidden: Tensor, length: int) -> Tensor:
        """[R,L,D] from what each rank ran."""
        ...

    def shared(self, count: int, work: Callable[[slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]: ...


class Network:
    """`model` is any transformers causal LM, or one wrapped by peft."""

    def __init__(self, model: nn.Module, checkpoints_activations: bool = False, is_compiled: bool = False) -> None:
        self.model = model
        self.checkpoints_activations = checkpoints_activations
        base = model.get_base_model() if type(model).__module__.startswith("peft.") else model
        self.config = base.config.get_text_config()
        self.body = text_model(base.base_model)
        self.is_compiled = is_compiled
        self._forward = torch.compile(self.body, dynamic=True) if is_compiled else self.body
        self._forward_of_scores = self.body
        """Without gradient."""
        self._head_in_parts: Callable[[], Head] | None = None
        self.spread: SpreadTokens | None = None
        """How the tokens of a row lie on ranks, where they do not all run here."""
        self.output = base.get_output_embeddings()
        self.softcap = getattr(self.config, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them.
        self.scale = getattr(self.config, "logit_scale", None) or 1.0 / (
            getattr(self.config, "logits_scaling", None) or 1
        )
        if self.output is None:
            raise ValueError(f"{type(base).__name__} has no output embeddings: not a causal language model")
        self.device, self.dtype = self.output.weight.device, self.output.weight.dtype
        """Where, and in what, it computes."""
        self.vocabulary = self.output.weight.shape[0]
        self.images = None if self.body is base.base_model else PromptImages(base, self.vocabulary)
        self._check_head(base)

    def with_model(self, model: nn.Module) -> "Network":
        """The same network under other weights, for scoring."""
        return Network(model)

    def placed(
        self,
        device: torch.device,
        dtype: torch.dtype,
        forward: Callable[..., Any],
        head: Callable[[], Head] | None = None,
    ) -> None:
        """For weights that lie elsewhere, or in another dtype, than where they compute: `forward` gathers them.
        `head` is asked for the head of an output layer that lies in parts."""
        self.device, self.dtype = device, dtype
        self._forward = self._forward_of_scores = forward
        self._head_in_parts = head

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        attention: Attention | None = None,
        routes: Pass | None = None,
    ) -> Tensor:
        """[R,L] ids -> [R,L,D]. Without `attention` rows are right-padded and causal: padding lies behind real tokens.

        With it the layers attend through it and through nothing else; with gradient and `checkpoints_activations`
        each layer keeps its input only and is computed again in the backward pass. The routers of a mixture of experts
        ask `routes`.
        """
        spread, (rows, length), asked = self.spread, ids.shape, routes
        if spread is not None:
            ids, positions, attention = spread.own(ids, positions, attention)
            routes = None if asked is None else spread.own_pass(asked, rows, length)
        given = {} if attention is None else {"gspo_attention": attention}
        with self._attending(attention), self._routed(routes), self._checkpointing(attention, routes):
            forward = self._forward if torch.is_grad_enabled() else self._forward_of_scores
            out = forward(**self._read(ids), position_ids=positions, use_cache=False, **given)
        if spread is None:
            return out.last_hidden_state
        if asked is not None and routes is not None:
            spread.fill(asked, routes, rows, length)
        return spread.together(out.last_hidden_state, length)

    def by_units(self, count: int, work: Callable[[slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Two values for each of `count` units: `work` is given those that are this rank's."""
        return work(slice(None)) if self.spread is None else self.spread.shared(count, work)

    def seeing(
        self, prompts: Sequence[Ids], inputs: Sequence[Any] | None, is_trained: bool = True
    ) -> AbstractContextManager[Sequence[Ids]]:
        """The prompts as ids that `hidden` and `next_logits` can read, images included, as long as it is open."""
        return seen(self.images, prompts, inputs, is_trained, self._reads_images_exactly)

    def _read(self, ids: Tensor) -> dict[str, Tensor]:
        """Ids, or their embeddings where some stand for images."""
        if self.images is None or not self.images.table.numel():
            return {"input_ids": ids}
        return {"inputs_embeds": self.images.embedded(ids, self.body.get_input_embeddings())}

    def _reads_images_exactly(self, prompt: Ids) -> Tensor:
        """[L,V] logits of a prompt as layouts see it: to be compared with the model's own."""
        return self.head(self.hidden(torch.tensor([prompt], device=self.device))[0])

    def _attending(self, attention: Attention | None) -> AbstractContextManager[None]:
        return nullcontext() if attention is None else attention_of_our_own(self.config)

    def _routed(self, routes: Pass | None) -> AbstractContextManager[None]:
        return nullcontext() if routes is None else routes.routers.through(routes)

    @contextmanager
    def _again(self, attention: Attention | None, routes: Pass | None) -> Iterator[None]:
        """Around a layer that runs again, in the backward pass."""
        with self._attending(attention), nullcontext() if routes is None else routes.again():
            yield

    @contextmanager
    def _checkpointing(self, attention: Attention | None, routes: Pass | None) -> Iterator[None]:
        """transformers' layers checkpoint themselves when told to, in training mode; dropout stays off below them."""
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            yield
            return
        # Layers ask the configuration for their attention when they run again, in the backward pass.
        contexts = lambda: (nullcontext(), self._again(attention, routes))  # noqa: E731
        again = partial(checkpoint, use_reentrant=False, context_fn=contexts)
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
    def routers(self) -> Routers | None:
        """Of a mixture of experts; None where there are none, or none that can be asked (see `no_routers`)."""
        experts = experts_of(self.config)
        if not experts or self.is_compiled:
            return None
        return find_routers(self.body, experts, self.vocabulary, self.device)

    @property
    def expert_layers(self) -> ExpertLayers | None:
        """Of a mixture of experts, where each router has a numbered layer of its own."""
        return None if self.routers is None else ExpertLayers.of(self.body, self.routers, self.config.num_hidden_layers)

    @property
    def no_routers(self) -> str:
        """Why there is nothing to record or to repeat."""
        if not experts_of(self.config):
            return f"{self.config.model_type} has no experts"
        if self.is_compiled:
            return "compile hides the routers"
        return f"the routers of {self.config.model_type} choose in a way that gspo does not know"

    def new_pass(self) -> Pass | None:
        """A forward pass whose routes are written down."""
        return None if self.routers is None else Pass(routers=self.routers)

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
    def head(self) -> Head:
        """[N,D] -> [N,V] logits; a `LinearHead` where the output layer is its weights and nothing else."""
        if self._head_in_parts is not None:
            return self._head_in_parts()
        # Adapters, sharding, quantization and parametrizations each bring a class of their own.
        if type(self.output) is nn.Linear and not self.output._forward_hooks and not self.output._forward_pre_hooks:
            return LinearHead(self.output.weight, self.output.bias, self.scale, self.softcap)
        return lambda hidden: shape_logits(self.output(hidden), self.scale, self.softcap)

    def new_cache(self) -> Any:
        """An empty key-value cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.config)

    def next_logits(
        self, ids: Tensor, cache: Any, positions: Tensor, mask: Tensor | None, routes: Pass | None = None
    ) -> Tensor:
        """Feed [R,L] ids behind the cache; [R,V] logits after the last of them. `mask` [R, past + L] marks real ids."""
        with self._routed(routes):
            out = self.body(
                **self._read(ids),
                past_key_values=cache,
                position_ids=positions,
                attention_mask=mask,
                use_cache=True,
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
