"""A causal language model with its sampler."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gspo.collectors.offline import is_offline
from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.objectives.base import UnitObjective
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.config import CausalLMConfig
from gspo.policies.network import Network
from gspo.policies.trained import TrainedPolicy
from gspo.renderers import Renderer
from gspo.samplers.base import Sampler
from gspo.samplers.in_process import InProcess
from gspo.samplers.rounded import Rounded, rounded_copy
from gspo.training.kinds.base import Built, dtype_name, load, reloading


def build_causal_lm(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    dataset: Dataset,
    report: Callable[[str], None],
    model: Any,
    tokenizer: Any,
) -> Built:
    loaded = load(config, report, model, tokenizer)
    settings = config.policy
    assert isinstance(settings, CausalLMConfig)
    refuse_routing(config, settings, terms, dataset)
    renderer = Renderer(
        loaded.tokenizer,
        generation=loaded.model.generation_config,
        system_prompt=config.system_prompt,
        chat=config.chat,
        stop=config.stop,
        strip_thinking=config.strip_thinking,
        processor=loaded.processor,
    )
    network = Network(loaded.model, config.checkpoint_activations, config.compile)
    scorer = TokenScorer(
        network=network,
        scoring=config.sampling,
        micro_batch_tokens=config.micro_batch_tokens,
        pad_id=renderer.pad_id,
        layout=config.layout,
        keeps_groups_whole=any(term.traits.keeps_groups_whole for term in terms),
        routing=settings.routing,
        balance_coef=settings.balance_coef,
    )
    sampled = network
    if settings.sampler_dtype not in ("auto", dtype_name(network)):
        sampled = Network(rounded_copy(loaded.model, getattr(torch, settings.sampler_dtype)))
    sampler: Sampler = InProcess(sampled, renderer.stop_ids, renderer.pad_id, config.sampler_rows)

    return Built(
        loaded=loaded,
        renderer=renderer,
        policy=TrainedPolicy(scorer, config.optimizer),
        sampler=sampler if sampled is network else Rounded(sampler, loaded.model, sampled.model),
        reload=reloading(network),
        repeats_old_pass=settings.routing == "R2",
        context=getattr(loaded.model.config, "max_position_embeddings", 0),
    )


def refuse_routing(
    config: RunConfig, settings: CausalLMConfig, terms: Sequence[UnitObjective], dataset: Dataset
) -> None:
    """Raises ValueError where nothing is there that the settings say to repeat."""
    if settings.routing == "R2" and not any("old" in term.traits.needs for term in terms):
        raise ValueError(
            'policy.routing = "R2" repeats the experts of the pass that makes old log-probs, and the objective '
            f'({terms[0].name}) divides by none; use "R3" or "free"'
        )
    reads_completions = len(dataset.train) > 0 and is_offline(dataset.train[0])
    if settings.routing == "R3" and (reads_completions or any(phase.pairs_from for phase in config.phase)):
        raise ValueError(
            'policy.routing = "R3" repeats the experts of the sampler, and completions that come with the data or as '
            'pairs have no record of them; use "R2" or "free"'
        )
