"""From settings to a policy, its sampler and its words: one file per kind of policy."""

from collections.abc import Callable, Sequence
from typing import Any

from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.objectives.base import UnitObjective
from gspo.training.kinds.base import Built
from gspo.training.kinds.causal_lm import build_causal_lm
from gspo.training.kinds.diffusion import build_diffusion
from gspo.training.kinds.image_tokens import build_image_tokens
from gspo.training.kinds.representation import build_representation

KINDS: dict[str, Callable[..., Built]] = {
    "causal_lm": build_causal_lm,
    "diffusion": build_diffusion,
    "representation": build_representation,
    "image_tokens": build_image_tokens,
}

__all__ = ["Built", "build_policy"]


def build_policy(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    dataset: Dataset,
    report: Callable[[str], None],
    model: Any = None,
    tokenizer: Any = None,
) -> Built:
    """The policy of a run. `model` and `tokenizer`: objects in place of what the settings name."""
    return KINDS[config.policy.name](config, terms, dataset, report, model, tokenizer)
