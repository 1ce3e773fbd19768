"""Settings of a run on many ranks."""

from dataclasses import dataclass
from typing import Literal

from gspo.limits import at_least

Sharding = Literal["full", "gradients", "none"]


@dataclass(frozen=True, kw_only=True)
class RanksConfig:
    """How the processes that torchrun starts share a run. One process without torchrun reads none of it."""

    sharding: Sharding = "full"
    """full: weights, gradients and moments in shards; gradients: weights whole while a step runs; none: all whole."""
    cpu_offload: bool = False
    """Keep shards, gradients and moments in the CPU's memory and update there; layers come to the GPU as they run."""
    tensor_parallel: int = 1
    """Ranks that split the matrices of a layer, as transformers' plan for the model says; they see the same rows."""
    context_parallel: int = 1
    """Ranks that share the tokens of every row, and in attention its heads; they see the same rows."""
    deadline: float = 1800.0
    """Seconds that ranks wait for each other before the run ends: longer than the slowest reward or environment."""

    @property
    def sees_alike(self) -> int:
        """Ranks that see the same rows."""
        return self.tensor_parallel * self.context_parallel

    def __post_init__(self) -> None:
        at_least(self, "ranks.", 1, "tensor_parallel", "context_parallel", "deadline")
        for name in ("tensor_parallel", "context_parallel"):
            if getattr(self, name) > 1 and self.sharding == "none":
                raise ValueError(
                    f"ranks.{name} = {getattr(self, name)} goes with weights in shards, and ranks.sharding = "
                    '"none" keeps them whole; use ranks.sharding = "full" or "gradients"'
                )
        if self.cpu_offload and self.sharding == "none":
            raise ValueError('ranks.cpu_offload moves shards, and ranks.sharding = "none" has none; use "full"')
