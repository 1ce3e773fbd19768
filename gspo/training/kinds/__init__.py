"""From settings to a policy, its sampler and its words: one file per kind of policy."""

from collections.abc import Callable, Sequence
from typing import Any

from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.objectives.base import UnitObjective
from gspo.policies.config import RepresentationConfig
from gspo.training.kinds.base import Built, Competition
from gspo.training.kinds.causal_lm import build_causal_lm
from gspo.training.kinds.diffusion import build_diffusion
from gspo.training.kinds.image_tokens import build_image_tokens
from gspo.training.kinds.representation import build_representation, competing_classes

KINDS: dict[str, Callable[..., Built]] = {
    "causal_lm": build_causal_lm,
    "diffusion": build_diffusion,
    "representation": build_representation,
    "image_tokens": build_image_tokens,
}

__all__ = ["Built", "Competition", "build_policy", "competition_of"]


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


def competition_of(config: RunConfig, dataset: Dataset) -> Competition | None:
    """What competes inside a rollout; None where rollouts compete in their groups."""
    if isinstance(config.policy, RepresentationConfig):
        return competing_classes(config.policy, dataset)
    return None
