"""Expert choices of a mixture of experts: written down in a forward pass, and repeated in another one.

A router scores the experts for each token and takes the best k. Here the model's own router runs with one answer
changed: `torch.topk` over the experts gives the recorded choice and the scores that these experts have *now*. So the
gates keep their gradient, whatever a family does before (softmax, sigmoid, bias) and behind (renormalise, scale) is its
own code, and a router that repeats its own choice gives the same bits.

R2 repeats the choices of the pass that made the old log-probs; R3 (2510.11370) those of the sampler.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Routing = Literal["free", "R2", "R3"]
OWN = -1
"""Stands for the router's own choice: padding, and whatever is not recorded."""


@dataclass(frozen=True)
class Routes:
    """The experts of one sequence: of each token that went forward, in each layer of experts. Small, comparable."""

    data: bytes
    shape: tuple[int, int, int]
    """Tokens, layers, experts per token. The last token of a completion is predicted and never goes forward."""
    dtype: str
    """The smallest unsigned integer that counts the experts: uint8 up to 256 of them, uint16 up to 65,536."""
    num_experts: int

    @classmethod
    def of(cls, experts: np.ndarray, num_experts: int) -> Self:
        """[T,layers,k]"""
        small = np.ascontiguousarray(experts, dtype=index_dtype(num_experts))
        return cls(small.tobytes(), (*small.shape,), small.dtype.name, num_experts)

    @property
    def experts(self) -> np.ndarray:
        """[T,layers,k], read-only."""
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)

    def followed_by(self, later: "Routes") -> "Routes":
        """`later` is of a sequence that begins with this one: what was recorded first stays."""
        behind = later.experts[self.shape[0] :]
        return Routes.of(np.concatenate([self.experts, behind]), self.num_experts)


def index_dtype(num_experts: int) -> np.dtype:
    return np.min_scalar_type(num_experts - 1)


@dataclass(kw_only=True, eq=False)
class Pass:
    """One forward pass through the routers: what they must choose, and what they would have chosen."""

    routers: "Routers"
    forced: Tensor | None = None
    """[N,layers,k] for the N tokens of the pass; `OWN` where the router decides. None: everywhere."""
    keeps_probabilities: bool = False
    """Keep the routers' probabilities too, with their gradient."""
    own: list[Tensor] = field(default_factory=list)
    """[N,k] by layer: each router's own choice."""
    used: list[Tensor] = field(default_factory=list)
    """[N,k] by layer: what the tokens went to."""
    probabilities: list[Tensor] = field(default_factory=list)
    """[N,E] by layer."""

    def choose(self, layer: int, scores: Tensor, own: Tensor) -> Tensor:
        assert layer == len(self.used), "a router ran twice, or out of order"
        used = own
        if self.forced is not None:
            told = self.forced[:, layer]
            used = torch.where(told == OWN, own, told)
        self.own.append(own)
        self.used.append(used)
        if self.keeps_probabilities:
            self.probabilities.append(self.routers.probabilities(scores))
        return used

    def check_finished(self) -> None:
        """Every router asked once."""
        assert len(self.used) == len(self.routers.modules), f"{len(self.used)} routers of {len(self.routers.modules)}"

    def routes(self) -> Tensor:
        """[N,layers,k] own choices, in the smallest dtype that torch counts so far with; on their device."""
        small = torch.uint8 if self.routers.num_experts <= 256 else torch.int32
        return torch.stack([own.to(small) for own in self.own], dim=1)

    @contextmanager
    def again(self) -> Iterator[None]:
        """For a layer that is computed again in the backward pass: the same choices, and nothing is written down."""
        with self.routers.asking(self._choose_again):
            yield

    def _choose_again(self, layer: int, scores: Tensor, own: Tensor) -> Tensor:
        if self.keeps_probabilities:
            self.routers.probabilities(scores)  # the first run's graph has them
        return self.used[layer]


class Routers:
    """The routers of a network, in the order in which tokens meet them."""

    def __init__(self, modules: Sequence[nn.Module], num_experts: int, top_k: int, are_positive: bool) -> None:
        self.modules = tuple(modules)
        self.num_experts = num_experts
        self.top_k = top_k
        self.are_positive = are_positive

    def probabilities(self, scores: Tensor) -> Tensor:
        """[N,E] of what `torch.topk` compares: probabilities or sigmoids, or where some are negative, logits."""
        scores = scores.float()
        return scores / scores.sum(dim=-1, keepdim=True) if self.are_positive else scores.softmax(dim=-1)

    @contextmanager
    def through(self, routes: Pass) -> Iterator[None]:
        """A forward pass in which the routers ask `routes`, each once."""
        with self.asking(routes.choose):
            yield
        routes.check_finished()

    @contextmanager
    def asking(self, choose: Any) -> Iterator[None]:
        """`choose(layer, scores, own)` decides in place of `torch.topk`."""
        with ExitStack() as stack:
            for layer, module in enumerate(self.modules):
                asked = _Asked(self.num_experts, partial(choose, layer))
                _around(stack, module, asked.begin, asked.end)
            yield

    def checked(self, record: Any, tokens: int) -> Routes:
        """The record, if it fits this network and a sequence of `tokens`. Raises ValueError with what does not fit."""
        if not isinstance(record, Routes):
            raise ValueError(
                "completions without a record of the experts they went to: R3 needs a sampler that records them, R2 "
                'old_logprobs = "policy"; or use routing = "free"'
            )
        found = (*record.shape, record.num_experts)
        wanted = (tokens, len(self.modules), self.top_k, self.num_experts)
        names = ("tokens", "layers of experts", "experts per token", "experts")
        wrong = [f"{a} {name} and not {b}" for name, a, b in zip(names, found, wanted, strict=True) if a != b]
        if wrong:
            raise ValueError(f"a routing record of another model or sequence: it has {', '.join(wrong)}")
        if record.data and int(record.experts.max()) >= self.num_experts:
            raise ValueError(
                f"a routing record of another model: it names expert {int(record.experts.max())}, and there are "
                f"{self.num_experts}"
            )
        return record


@dataclass(frozen=True)
class ExpertLayers:
    """Where the layers of experts stand among all hidden layers, for records that have a column for each of them.

    A model of four layers, the first of them dense: layers (1, 2, 3), num_layers 4.
    """

    layers: tuple[int, ...]
    """In the order of `Routers.modules`."""
    num_layers: int
    num_experts: int
    top_k: int

    @classmethod
    def of(cls, body: nn.Module, routers: Routers, num_layers: int) -> "ExpertLayers | None":
        """By the routers' names (layers.3.mlp.gate: 3); None where they are not one to a numbered layer."""
        names = {module: name for name, module in body.named_modules()}
        numbers = [[int(part) for part in names[module].split(".") if part.isdigit()] for module in routers.modules]
        layers = tuple(found[0] for found in numbers if found)
        if len(set(layers)) < len(routers.modules) or max(layers) >= num_layers:
            return None
        return cls(layers, num_layers, routers.num_experts, routers.top_k)

    def routes(self, recorded: np.ndarray, tokens: int) -> Routes:
        """Of the experts [T,num_layers,k] that a sequence went to, anything in dense layers. Raises ValueError with
        what does not fit this model and `tokens`.
        """
        wanted = (tokens, self.num_layers, self.top_k)
        if recorded.shape != wanted:
            raise ValueError(
                f"expert routes of shape {recorded.shape} and not {wanted} (tokens, hidden layers, experts per token)"
            )
        experts = recorded[:, self.layers]
        if not 0 <= experts.min() <= experts.max() < self.num_experts:
            raise ValueError(
                f"expert routes that name experts {experts.min()} to {experts.max()}, and there are {self.num_experts}"
            )
        # No token goes to expert 0 twice: such a column stands for a layer without experts.
        silent = [layer for layer, is_there in zip(self.layers, experts.any(axis=(0, 2)), strict=True) if not is_there]
        if silent and self.top_k > 1:
            raise ValueError(f"expert routes without layer {silent[0]}, which has experts here")
        return Routes.of(experts, self.num_experts)


class _Asked(TorchFunctionMode):
    """Within it `torch.topk` over the experts of a list of tokens takes what `choose(scores, own)` says."""

    def __init__(self, num_experts: int, choose: Any) -> None:
        super().__init__()
        self.num_experts, self.choose = num_experts, choose

    def begin(self, *_: Any) -> None:
        self.__enter__()

    def end(self, *_: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in (torch.topk, torch.Tensor.topk):
            return out
        scores = args[0] if args else kwargs["input"]
        if scores.ndim != 2 or scores.shape[-1] != self.num_experts:
            return out  # a choice between groups of experts
        # Gathered even if the choice is the router's own: a layer that runs again must make the same graph.
        used = self.choose(scores, out.indices)
        return torch.return_types.topk((scores.gather(-1, used), used))


def _around(stack: ExitStack, module: nn.Module, before: Any, behind: Any) -> None:
    """Hooks around each forward call of a module, until the stack closes; the second also where the call raises."""
    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(behind, always_call=True).remove)


def experts_of(config: Any) -> int:
    """How many experts a layer has, as its configuration says; 0: none."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((int(n) for name in names if isinstance(n := getattr(config, name, None), int) and n > 1), 0)


@torch.no_grad()
def find_routers(body: nn.Module, num_experts: int, vocabulary: int, device: torch.device) -> Routers | None:
    """The modules that choose between experts, found by running a few tokens: the innermost one around each choice.

    None where some choice is made in another way than by one `torch.topk`.
    """
    inside: list[nn.Module] = []
    found: list[tuple[nn.Module, Tensor, int]] = []

    def enter(module: nn.Module, _: Any) -> None:
        inside.append(module)

    def leave(*_: Any) -> None:
        inside.pop()

    def note(scores: Tensor, own: Tensor) -> Tensor:
        found.append((inside[-1], scores, own.shape[-1]))
        return own

    with ExitStack() as stack, _Asked(num_experts, note):
        for module in body.modules():
            _around(stack, module, enter, leave)
        body(input_ids=torch.arange(5, device=device)[None] % vocabulary, use_cache=False)
    modules = [module for module, _, _ in found]
    if not found or len({k for _, _, k in found}) > 1 or len(set(modules)) < len(modules):
        return None
    are_positive = all(bool((scores >= 0).all()) for _, scores, _ in found)
    return Routers(modules, num_experts, found[0][2], are_positive)


# ---- routes of sequences, and of the tokens of a layout


def laid_out(records: Sequence[Routes], where: Sequence[np.ndarray], tokens: int, device: torch.device) -> Tensor:
    """[tokens,layers,k] from where each sequence's tokens stand; what sequences share has the routes of the first."""
    _, layers, k = records[0].shape
    out = np.full((tokens, layers, k), OWN, dtype=np.int64)
    for record, places in zip(reversed(records), reversed(where), strict=True):
        out[places] = record.experts
    return torch.from_numpy(out).to(device)


def by_sequence(routes: Tensor, where: Sequence[np.ndarray], num_experts: int) -> tuple[Routes, ...]:
    """The inverse, of a pass's routes."""
    experts = routes.cpu().numpy()
    return tuple(Routes.of(experts[places], num_experts) for places in where)


# ---- balance


def expert_shares(records: Sequence[Routes]) -> np.ndarray:
    """[layers,E] share of all choices that went to each expert, over the tokens of all sequences."""
    _, layers, _ = records[0].shape
    counts = np.zeros((layers, records[0].num_experts))
    for record in records:
        for layer in range(layers):
            counts[layer] += np.bincount(record.experts[:, layer].ravel(), minlength=counts.shape[1])
    return counts / max(counts[0].sum(), 1)


@dataclass(frozen=True, eq=False)
class Balance:
    """The load-balancing loss (Switch Transformers, 2101.03961, (4)-(6)) over all sequences of an update:

        coef * mean over layers of E sum_e f_e P_e

    f_e: share of the recorded choices that went to expert e; P_e: mean probability of e over the tokens. 1 x coef when
    even. Both are counted over the whole update before any row goes forward, so that micro-batches add up.
    """

    coef: float
    shares: np.ndarray
    """f [layers,E]"""
    tokens: int
    """Of all sequences; what sequences share counts for each."""

    def loss(self, routes: Pass, where: Sequence[np.ndarray]) -> Tensor:
        """Of the tokens of a pass: their part of the sum."""
        first = routes.probabilities[0]
        times = np.bincount(np.concatenate(list(where)), minlength=len(first))
        weight = torch.from_numpy(times).to(first.device, torch.float32) / self.tokens
        shares = torch.from_numpy(self.shares).to(first.device, torch.float32)
        mass = torch.stack([weight @ p.float() for p in routes.probabilities])  # [layers,E]
        return self.coef * shares.shape[1] * (shares * mass).sum(dim=1).mean()
