"""From settings to a policy, its sampler and its words: one file per kind of policy."""

from collections.abc import Callable, Sequence
from typing import Any

from gspo.config import RunConfig
from gspo.objectives.base import UnitObjective
from gspo.training.kinds.base import Built
from gspo.training.kinds.causal_lm import build_causal_lm

KINDS: dict[str, Callable[..., Built]] = {
    "causal_lm": build_causal_lm,
}

__all__ = ["Built", "build_policy"]


def build_policy(
    config: RunConfig, terms: Sequence[UnitObjective], report: Callable[[str], None], model: Any, tokenizer: Any
) -> Built:
    """The policy of a run. `model` and `tokenizer`: objects in place of what the settings name, or None."""
    return KINDS[config.policy.name](config, terms, report, model, tokenizer)
