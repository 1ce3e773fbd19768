"""What every kind of policy gives to a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gspo.config import RunConfig
from gspo.corrections import Reweighting
from gspo.models import Loaded, TinyConfig, load_model, words_of
from gspo.policies.trained import Scorer
from gspo.renderers import Renderer
from gspo.samplers.base import Sampler


@dataclass(frozen=True, kw_only=True)
class Built:
    """A policy with all that belongs to its kind."""

    loaded: Loaded
    renderer: Renderer
    scorer: Scorer
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
    repeats_old_pass: bool = False
    """Whether training needs what the pass for the old log-probs records (R2)."""


@dataclass(frozen=True, kw_only=True)
class Competition:
    """What a kind says beforehand whose units compete in sets, and not rollouts with each other."""

    size: int
    """Units of a set: the group that rewards are compared in."""
    rewards: Mapping[str, float]
    """Its own rewards and their weights, in place of the run's."""
    corrections: tuple[Reweighting, ...] = ()


def load(
    config: RunConfig,
    report: Callable[[str], None],
    model: Any,
    reader: Any,
    read: Callable[[str], tuple[Any, Any]] | None = None,
    make_tiny: Callable[[TinyConfig, int], Loaded] | None = None,
) -> Loaded:
    """The model of a run: the one passed from Python, with its tokenizer or processor, or what the settings name.

    `read` and `make_tiny`: see `load_model`.
    """
    if model is not None:
        tokenizer, processor = words_of(reader)
        return Loaded(model.eval(), tokenizer, type(model).__name__, processor)
    return load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        lora=config.lora,
        tiny=config.tiny,
        seed=config.seed,
        report=report,
        read=read,
        make_tiny=make_tiny,
    )


def reloading(network: Any, read: Callable[[str], tuple[Any, Any]] | None = None) -> Callable[[Path], nn.Module]:
    """`Built.reload` of a kind whose models `load` reads."""

    def reload(folder: Path) -> nn.Module:
        return load_model(str(folder), dtype=dtype_name(network), device=str(network.device), read=read).model

    return reload


def dtype_name(module: Any) -> Any:
    """Of a network: "float32"."""
    return str(module.dtype).removeprefix("torch.")
