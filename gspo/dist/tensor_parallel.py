"""Which layers of a model are split over the ranks of a group: as transformers' own plan for the model says.

The embedding and the output layer are split by tokens where the ranks divide the vocabulary, else whole on each rank.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from gspo.dist.split_layers import Inputs, SplitEmbedding, SplitHead, SplitLinear, Way, here
from gspo.policies.likelihood import Head
from gspo.policies.linear_head import LinearHead
from gspo.policies.network import Network

WAYS: dict[str, Way] = {
    "colwise": "columns",
    "rowwise": "rows",
    "colwise_gather_output": "columns, gathered",
    "colwise_rep": "columns, gathered",
    "rowwise_split_input": "rows, from whole",
    "rowwise_rep": "rows, from whole",
}
"""By transformers' name."""
SUMMED = "replicated_with_grad_allreduce"
"""transformers' name of what is whole on each rank, which uses it for its own heads: its gradient is summed."""
BY_TOKENS = ("embed_tokens", "lm_head")
"""What a plan may say of the layers that are split by tokens here."""


class TensorParallel:
    """A network's layers over the ranks of `mesh`, which all see the same rows."""

    def __init__(self, network: Network, mesh: DeviceMesh) -> None:
        self.network, self.mesh = network, mesh
        self.group, self.size, self.rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()
        self.plan = plan_of(network, self.size)
        self.inputs = Inputs(self.group)
        self._terms: list[tuple[nn.Module, str]] = []
        """Modules and the names of their parameters whose gradients are terms of a sum over ranks."""
        self._split: list[tuple[nn.Module, str]] = []
        """Modules and the names of their parameters that lie in parts."""
        self._forwards: list[tuple[nn.Module, SplitLinear | SplitEmbedding]] = []
        self._seen: set[nn.Module] = set()
        self._is_whole = False

    def split(self, within: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Split what the plan names inside of a module, but for what is split already; with `dtype` what is trained is
        kept in it. The ends are split with the module that has them."""
        inside = set(within.modules()) - self._seen
        self._seen |= inside
        for name, module in self.network.body.named_modules():
            style = style_of(self.plan, name)
            if not style or module not in inside:
                continue
            if style == SUMMED:
                self._terms += [(module, each) for each, p in module.named_parameters() if p.requires_grad]
                continue
            base, way = getattr(module, "base_layer", module), WAYS[style]
            self._split_linear(name, base, way, dtype)
            # Of B A x, beside a matrix split by outputs B is split likewise, beside one split by inputs A is.
            for factor in ("lora_B",) if way.startswith("columns") else ("lora_A",):
                for adapter in getattr(module, factor, {}).values():
                    self._split_linear(name, adapter, way, dtype)

        if self.network.output in inside:
            self._split_ends(dtype)

    def _split_ends(self, dtype: torch.dtype | None) -> None:
        """The embedding and the output layer, where they can be split by tokens."""
        embedding, output = self.network.body.get_input_embeddings(), self.network.output
        is_known = type(embedding) is nn.Embedding and type(output) is nn.Linear
        if not is_known or any(len(each.weight) % self.size for each in (embedding, output)):
            return
        is_tied = embedding.weight is output.weight
        self._part(embedding, "weight", 0, dtype)
        self._install(embedding, SplitEmbedding(embedding, self.group))
        if is_tied:
            output.weight = embedding.weight
            self._split.append((output, "weight"))
        else:
            self._part(output, "weight", 0, dtype)
        if output.bias is not None:
            self._part(output, "bias", 0, dtype)

    def head(self) -> Head:
        """Of the network as it lies now."""
        output, network = self.network.output, self.network
        part = LinearHead(here(output.weight), here(output.bias), network.scale, network.softcap)
        is_split = (output, "weight") in self._split and not self._is_whole
        return SplitHead(part, self.group) if is_split else part

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every matrix on every rank, and layers that are their own; around it, shards are gathered."""
        lay = [(module, name, getattr(module, name)) for module, name in self._split]
        made: dict[int, nn.Parameter] = {}
        for module, name, part in lay:
            if id(part) not in made:
                made[id(part)] = nn.Parameter(part.full_tensor().detach(), part.requires_grad)
            module._parameters[name] = made[id(part)]
        for module, _ in self._forwards:
            del module.forward
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            for module, name, part in lay:
                module._parameters[name] = part
            for module, forward in self._forwards:
                module.forward = forward

    def add_up_terms(self) -> None:
        """Of gradients that are terms of a sum over ranks."""
        for module, name in self._terms:
            gradient = getattr(module, name).grad
            if gradient is not None:
                dist.all_reduce(here(gradient), group=self.group)

    def _split_linear(self, name: str, module: nn.Module, way: Way, dtype: torch.dtype | None) -> None:
        if type(module) is not nn.Linear:
            raise ValueError(f"{name} is a {type(module).__name__}: ranks.tensor_parallel splits plain linear layers")
        is_by_columns = way.startswith("columns")
        count = module.out_features if is_by_columns else module.in_features
        if count % self.size:
            raise ValueError(
                f"ranks.tensor_parallel = {self.size} does not divide the {count} "
                f"{'outputs' if is_by_columns else 'inputs'} of {name}"
            )
        self._part(module, "weight", 0 if is_by_columns else 1, dtype)
        if module.bias is not None and is_by_columns:
            self._part(module, "bias", 0, dtype)
        self._install(module, SplitLinear(module, way, self.inputs, self.group))

    def _part(self, module: nn.Module, name: str, dim: int, dtype: torch.dtype | None) -> None:
        """Keep this rank's part of a parameter."""
        old: Tensor = getattr(module, name)
        own = old.detach().chunk(self.size, dim=dim)[self.rank]
        own = own.to(self.mesh.device_type, dtype if old.requires_grad else None, copy=True).contiguous()
        part = DTensor.from_local(own, self.mesh, [Shard(dim)], run_check=False)
        setattr(module, name, nn.Parameter(part, old.requires_grad))
        self._split.append((module, name))

    def _install(self, module: Any, forward: SplitLinear | SplitEmbedding) -> None:
        module.forward = forward
        self._forwards.append((module, forward))


def style_of(plan: dict[str, str], name: str) -> str:
    """What a plan says of a module of the body, whose layers it numbers by `*`; empty where it says nothing."""
    return plan.get(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), "")


def plan_of(network: Network, size: int) -> dict[str, str]:
    """transformers' plan for the body; ValueError where there is none, or where `size` ranks cannot follow it."""
    config = network.config
    plan = {name: style for name, style in (config.base_model_tp_plan or {}).items() if name not in BY_TOKENS}
    if not plan:
        raise ValueError(f"transformers has no tensor-parallel plan for {config.model_type}; use ranks.sharding alone")
    for name, style in plan.items():
        if style != SUMMED and style not in WAYS:
            raise ValueError(
                f"transformers' plan for {config.model_type} splits {name} as {style}, which gspo does not; set "
                "ranks.tensor_parallel = 1"
            )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(config, name, None)
        if count is not None and count % size:
            raise ValueError(f"ranks.tensor_parallel = {size} does not divide {name} = {count} of {config.model_type}")
    named = dict(network.body.named_modules())
    between = {name.rpartition(".")[0] for name in named if style_of(plan, name) == "colwise"}
    for name, module in named.items():
        has_own = any(True for _ in module.parameters(recurse=False))
        if has_own and name.rpartition(".")[0] in between and not style_of(plan, name):
            raise ValueError(
                f"transformers' plan for {config.model_type} does not say how {name} is split; set "
                "ranks.tensor_parallel = 1"
            )
    return plan
