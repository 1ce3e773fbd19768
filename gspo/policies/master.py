"""AdamW on float32 master weights, whatever dtype the network computes in.

For a float32 or float64 network the masters are the parameters themselves. For bf16 and fp16 every parameter has a
float32 copy; each micro-batch's gradient is added to the copy's float32 gradient as soon as it is ready and freed, so
accumulation never happens in half precision.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Optimizer settings; the learning rate's course over the run is `Schedule`."""

    lr: float = 1e-6
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only (norms and biases are left alone)."""
    max_grad_norm: float = 1.0
    """Gradient norm above which the whole step's gradient is scaled down; 0 switches clipping off."""


TotalNorm = Callable[[Collection[Tensor]], Tensor]
"""Of the gradients of weights. Ranks add theirs up first."""


def norm_of(masters: Collection[Tensor]) -> Tensor:
    """L2 norm over all gradients there are."""
    return torch.nn.utils.get_total_norm([m.grad for m in masters if m.grad is not None])


def by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those that one operation may take together: spread over the same ranks, or over none."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(found.values())


class MasterWeights:
    """Parameters, their float32 masters, and the AdamW state over them."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], settings: AdamW, total_norm: TotalNorm = norm_of
    ) -> None:
        self.settings = settings
        self.total_norm = total_norm
        self.params = dict(named)
        if not self.params:
            raise ValueError("the policy has no trainable parameter")
        self.masters: dict[str, Tensor] = {}
        self._stale: set[str] = set()
        """Copies whose gradient is the last step's: the next to come is written over it, not added."""
        for name, param in self.params.items():
            if param.dtype in (torch.float32, torch.float64):
                self.masters[name] = param
                continue
            master = param.detach().float().clone().requires_grad_(True)
            master.grad = torch.zeros_like(master)
            self._stale.add(name)
            self.masters[name] = master
            param.register_post_accumulate_grad_hook(lambda p, n=name: self._move_gradient(p, n))
        decayed = [m for m in self.masters.values() if m.ndim >= 2]
        others = [m for m in self.masters.values() if m.ndim < 2]
        kinds = ((decayed, settings.weight_decay), (others, 0.0))
        self.optimizer = torch.optim.AdamW(
            [{"params": some, "weight_decay": decay} for masters, decay in kinds for some in by_mesh(masters)],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )

    def step(self, lr: float) -> float:
        """Clip, update, clear. Returns the gradient norm of the whole step before clipping."""
        for name in self._stale:
            self.masters[name].grad.zero_()
        norm = self.total_norm(self.masters.values())
        value = norm.item()
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {value}")
        if 0 < self.settings.max_grad_norm < value:
            for masters in by_mesh(self.masters.values()):
                torch.nn.utils.clip_grads_with_norm_(masters, self.settings.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.clear()
        self.publish()
        return value

    @torch.no_grad()
    def _move_gradient(self, param: nn.Parameter, name: str) -> None:
        total = self.masters[name].grad
        assert param.grad is not None and total is not None
        if name in self._stale:
            self._stale.discard(name)
            total.copy_(param.grad)
        else:
            total.add_(param.grad)
        param.grad = None

    def clear(self) -> None:
        for name, master in self.masters.items():
            if master is self.params[name]:
                master.grad = None
            else:
                self._stale.add(name)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters that compute."""
        for name, master in self.masters.items():
            if master is not self.params[name]:
                self.params[name].copy_(master)

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the parameters as they are now for masters, after something else trained them."""
        for name, master in self.masters.items():
            if master is not self.params[name]:
                master.copy_(self.params[name])

    def state(self) -> dict[str, Tensor]:
        """Flat tensors: `master.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`."""
        flat: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            flat[f"master.{name}"] = master.detach()
            for key, value in self.optimizer.state.get(master, {}).items():
                flat[f"{key}.{name}"] = value
        return flat

    @torch.no_grad()
    def load(self, flat: dict[str, Tensor]) -> None:
        """The inverse of `state`; a missing or misshapen tensor is an error that names it."""
        for name, master in self.masters.items():
            found = tuple(flat[f"master.{name}"].shape) if f"master.{name}" in flat else "missing"
            if found != tuple(master.shape):
                raise ValueError(
                    f"the checkpoint does not fit the model: parameter {name} is {found} in it and "
                    f"{tuple(master.shape)} in the model; give the settings of the model that was saved"
                )
            master.copy_(flat[f"master.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in flat]
            if keys:
                self.optimizer.state[master] = {
                    key: flat[f"{key}.{name}"].clone().to(master.device if key != "step" else "cpu") for key in keys
                }
        self.publish()
