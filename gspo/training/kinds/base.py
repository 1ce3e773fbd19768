"""What every kind of policy gives to a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gspo.models import Loaded
from gspo.policies.trained import TrainedPolicy
from gspo.renderers import Renderer
from gspo.samplers.base import Sampler


@dataclass(frozen=True, kw_only=True)
class Built:
    """A policy with all that belongs to its kind."""

    loaded: Loaded
    renderer: Renderer
    policy: TrainedPolicy
    sampler: Sampler
    reload: Callable[[Path], nn.Module]
    """The model that `save_pretrained` wrote into a folder, on the run's device and in its dtype: a reference."""
    source: Callable[..., Any] | None = None
    """Makes groups, called with the fields of `GroupSource`; None: `GroupSource` itself."""
    warm_up: Callable[..., int] | None = None
    """Steps before reinforcement learning, called with rows and `is_done`; None: imitation of the rows' completions."""
    context: int = 0
    """Most tokens of a prompt and its completion; 0: not known."""
    width: int = 0
    """Positions of every completion, where all have one length and end tokens fill it up; 0: as long as they are."""


def dtype_name(module: Any) -> Any:
    """Of a network: "float32"."""
    return str(module.dtype).removeprefix("torch.")
