"""Where a network's weights lie: whole on every rank, or in shards that FSDP2 gathers layer by layer as they run.

Shards are kept in float32 (float64 stays) and are the master weights themselves; layers are gathered in the dtype that
the network computes in. The weights of a step were made on the whole step, so gradients are summed over ranks: FSDP's
mean is switched off, and nothing is undone afterwards.

Weights that are trained beside frozen ones (adapters) are few: they stay whole on every rank, and what is sharded is
the frozen rest.

Ranks that follow each other may see the same rows: each with its part of every matrix (`gspo.dist.tensor_parallel`),
whose parts FSDP2 then shards over the others; or each with its part of the tokens (`gspo.dist.context_parallel`).
"""

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from gspo.dist.config import RanksConfig
from gspo.dist.context_parallel import ContextParallel, refuse_unspread
from gspo.dist.ranks import Ranks
from gspo.dist.split_layers import here
from gspo.dist.tensor_parallel import TensorParallel
from gspo.policies.master import by_mesh, norm_of
from gspo.policies.network import Network


class Placement(Protocol):
    """Where the weights of one network lie."""

    in_step: bool
    """Every pass through the network is a collective: ranks make equally many."""
    share: int
    """Which of `shares` rows are this rank's."""
    shares: int
    speaks: bool
    """Whether others hear of these rows from this rank, not from one that sees them too."""

    def whole(self) -> AbstractContextManager[None]:
        """All weights gathered on every rank, for passes that ranks make each for itself; for reading too."""
        ...

    def rest(self) -> None:
        """Let go of what a pass without a backward pass has left gathered."""
        ...

    def plain_model(self) -> nn.Module:
        """An ordinary model with all weights, on rank 0; a call of all ranks."""
        ...

    def total_norm(self, masters: Collection[Tensor]) -> Tensor:
        """Gradients of all ranks become one; its norm."""
        ...


class Whole:
    """Every rank has all weights, and the gradients of all ranks are added up before the optimizer looks at them."""

    in_step = False
    speaks = True

    def __init__(self, network: Any, ranks: Ranks) -> None:
        self.network, self.ranks = network, ranks
        self.share, self.shares = ranks.rank, ranks.size

    def plain_model(self) -> nn.Module:
        return self.network.model

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def rest(self) -> None:
        pass

    def total_norm(self, masters: Collection[Tensor]) -> Tensor:
        _add_up(masters, self.ranks.add_up)
        return norm_of(masters)


class Sharded:
    """FSDP2 over the ranks that see different rows: a group for each decoder layer, and one for the rest."""

    in_step = True

    def __init__(self, network: Network, ranks: Ranks, settings: RanksConfig, device: torch.device) -> None:
        refuse_unknown(network)
        self.network, self.ranks = network, ranks
        alike = settings.sees_alike
        mesh = mesh_of(device, ranks.size, settings.tensor_parallel)
        self.mesh = mesh["data"]
        self.share, self.shares, self.speaks = ranks.rank // alike, ranks.size // alike, ranks.rank % alike == 0
        self._empty = without_values(network.model)
        self.keeps_gathered = settings.sharding == "gradients"
        # What is found out by running the network is found out while it is whole.
        _ = network.routers, network.shape, network.refusal
        computes_in = network.dtype
        self.tensor = TensorParallel(network, mesh["tensor"]) if settings.tensor_parallel > 1 else None
        self.context = None
        if settings.context_parallel > 1:
            refuse_unspread(network, settings.context_parallel, settings.tensor_parallel)
            self.context = ContextParallel(context_of(ranks, settings))
        expected = answers(network) if alike > 1 else None
        self.root = base_of_model(network.model)
        named = dict(network.model.named_parameters())
        trained = {p for p in named.values() if p.requires_grad}
        self.keeps_trained_whole = 0 < len(trained) < len(named)
        is_half = computes_in in (torch.bfloat16, torch.float16)
        has_masters = is_half and bool(trained) and not self.keeps_trained_whole
        precision = MixedPrecisionPolicy(param_dtype=computes_in, reduce_dtype=torch.float32)
        offload = CPUOffloadPolicy() if settings.cpu_offload and device.type == "cuda" else OffloadPolicy()
        policies = (precision if has_masters else MixedPrecisionPolicy(), offload)
        layers = [m for m in network.body.modules() if isinstance(m, GradientCheckpointingLayer)]
        for module in [*reversed(layers), self.root]:
            self._shard(module, device, torch.float32 if has_masters else None, *policies)
        self.groups: list[Any] = [m for m in self.root.modules() if isinstance(m, FSDPModule)]
        network.placed(device, computes_in, self._entrance(network), self.tensor and self.tensor.head)
        with torch.no_grad():  # FSDP takes the module that runs first for the root
            network.hidden(torch.zeros((1, 1), dtype=torch.long, device=device))
        network.spread = self.context
        if expected is not None:
            refuse_changed(network, expected)
        self.rest()

    def _shard(
        self,
        module: nn.Module,
        device: torch.device,
        kept_in: torch.dtype | None,
        precision: MixedPrecisionPolicy,
        offload: OffloadPolicy,
    ) -> None:
        """Put the weights of a module that are in no group yet into one; masters are kept in another dtype."""
        if self.tensor is not None:
            self.tensor.split(module, kept_in)
        own = [p for p in module.parameters() if not isinstance(p, DTensor)]
        if kept_in is not None:
            for parameter in own:
                parameter.data = parameter.data.to(kept_in)
        apart = {p for p in module.parameters() if p.requires_grad} if self.keeps_trained_whole else set()
        for parameter in apart.intersection(own):
            parameter.data = parameter.data.to(device)
        fully_shard(
            module,
            mesh=self.mesh,
            reshard_after_forward=False if module is self.root else not self.keeps_gathered,
            mp_policy=precision,
            offload_policy=offload,
            ignored_params=apart,
        )
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]

    def _entrance(self, network: Network) -> Any:
        """The body, called so that the weights outside of the layers (the output layer's too) are gathered before."""
        body = network.body
        self.root.gspo_body = lambda **inputs: body(**inputs)
        register_fsdp_forward_method(self.root, "gspo_body")
        return self.root.gspo_body

    @contextmanager
    def whole(self) -> Iterator[None]:
        self.root.set_reshard_after_forward(False)
        for group in self.groups:
            group.unshard()
        self.network.spread = None
        try:
            with nullcontext() if self.tensor is None else self.tensor.whole():
                yield
        finally:
            self.network.spread = self.context
            for group in self.groups:
                group.reshard()
            self.root.set_reshard_after_forward(not self.keeps_gathered)
            self.root.set_reshard_after_forward(False, recurse=False)

    def rest(self) -> None:
        if self.tensor is not None:
            self.tensor.inputs.forget()
        for group in self.groups:
            group.reshard()

    @torch.no_grad()
    def plain_model(self) -> nn.Module:
        """Gathered one weight after the other, into the CPU's memory."""
        values: dict[int, Tensor] = {}
        state: dict[str, Tensor] = {}
        dtypes = {name: p.dtype for name, p in self._empty.named_parameters(remove_duplicate=False)}
        for name, parameter in self.network.model.named_parameters(remove_duplicate=False):
            if id(parameter) not in values:
                whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                values[id(parameter)] = whole.to("cpu", dtypes[name], copy=True) if self.ranks.is_first else whole[:0]
            state[name] = values[id(parameter)]
        model = copy.deepcopy(self._empty)
        if self.ranks.is_first:
            model.load_state_dict(state, strict=False, assign=True)
            base_of_model(model).tie_weights()
        return model

    def total_norm(self, masters: Collection[Tensor]) -> Tensor:
        if self.keeps_trained_whole:
            _add_up(masters, self._add_up)
        if self.tensor is not None:
            self.tensor.add_up_terms()
        norms = [norm_of(some) for some in by_mesh(masters)]
        found = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        return found[0] if len(found) == 1 else torch.linalg.vector_norm(torch.stack(found))

    def _add_up(self, tensors: Iterable[Tensor]) -> None:
        """Over the ranks that see different rows."""
        for tensor in tensors:
            dist.all_reduce(here(tensor), group=self.mesh.get_group())


def mesh_of(device: torch.device, size: int, tensor_parallel: int = 1) -> DeviceMesh:
    """Ranks that follow each other see the same rows."""
    # That what lies over both is gathered in two steps is no news.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    shape = (size // tensor_parallel, tensor_parallel)
    return init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))


def context_of(ranks: Ranks, settings: RanksConfig) -> Any:
    """The group that shares this rank's tokens; all ranks make all groups."""
    context, tensor = settings.context_parallel, settings.tensor_parallel
    groups = [
        dist.new_group([first + tensor * i for i in range(context)], timeout=timedelta(seconds=settings.deadline))
        for block in range(0, ranks.size, context * tensor)
        for first in range(block, block + tensor)
    ]
    return next(group for group in groups if group != dist.GroupMember.NON_GROUP_MEMBER)


@torch.no_grad()
def answers(network: Network) -> Tensor:
    """[8,V] logits of a short row."""
    ids = torch.arange(8, device=network.device)[None] % network.vocabulary
    states = network.hidden(ids)[0]  # the head lies as it does behind a pass
    return network.head(states).float().cpu()


def refuse_changed(network: Network, expected: Tensor) -> None:
    """Raises ValueError where the network does not answer as it did whole; a call of all ranks."""
    gap = (answers(network) - expected).abs().max().item()
    tolerance = 1e-3 if network.dtype in (torch.float32, torch.float64) else 0.1
    if not gap <= tolerance * max(1.0, expected.abs().max().item()):
        raise ValueError(
            f"{network.config.model_type} in parts answers otherwise than whole (logits differ by {gap:.2g}); set "
            "ranks.tensor_parallel = 1 and ranks.context_parallel = 1"
        )


def _add_up(masters: Collection[Tensor], add_up: Callable[[Iterable[Tensor]], None]) -> None:
    """Gradients of ranks become their sum; a weight without a gradient on any rank stays without."""
    there = torch.tensor([float(master.grad is not None) for master in masters], device=_device_of(masters))
    add_up([there])
    for master, count in zip(masters, there.tolist(), strict=True):
        if count:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
            add_up([master.grad])


def without_values(model: nn.Module) -> nn.Module:
    """A copy whose parameters have a shape and a dtype, and no memory."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def base_of_model(model: Any) -> Any:
    """The transformers model, without peft around it."""
    return model.get_base_model() if type(model).__module__.startswith("peft.") else model


def refuse_unknown(network: Network) -> None:
    """Raises ValueError for what cannot be gathered layer by layer."""
    if network.images is not None:
        raise ValueError(
            f"{network.config.model_type} reads images before its layers run: its weights cannot lie in shards; set "
            'ranks.sharding = "none"'
        )
    if network.is_compiled:
        raise ValueError('compile goes with weights that are whole on every rank; set ranks.sharding = "none"')


def _device_of(masters: Collection[Tensor]) -> torch.device:
    return next(iter(masters)).device


def place(network: Any, ranks: Ranks, settings: RanksConfig, device: torch.device) -> Placement:
    """The network's weights as the settings say."""
    if settings.sharding == "none":
        return Whole(network, ranks)
    if not isinstance(network, Network):
        raise ValueError('ranks.sharding shards language models; for other kinds of policy set ranks.sharding = "none"')
    return Sharded(network, ranks, settings, device)


def share_of(values: Sequence[Any], rank: int, size: int) -> list[Any]:
    """A run of them, about as long as the others'."""
    return list(values[len(values) * rank // size : len(values) * (rank + 1) // size])
