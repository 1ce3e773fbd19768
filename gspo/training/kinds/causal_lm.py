"""A causal language model with its sampler."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gspo.collectors.offline import is_offline
from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.models import Loaded, load_model, words_of
from gspo.objectives.base import UnitObjective
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.config import CausalLMConfig
from gspo.policies.network import Network
from gspo.policies.trained import TrainedPolicy
from gspo.renderers import Renderer
from gspo.samplers.base import Sampler
from gspo.samplers.in_process import InProcess
from gspo.samplers.rounded import Rounded, rounded_copy
from gspo.training.kinds.base import Built, dtype_name


def build_causal_lm(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    dataset: Dataset,
    report: Callable[[str], None],
    model: Any,
    tokenizer: Any,
) -> Built:
    loaded = (
        given_model(model, tokenizer)
        if model is not None
        else load_model(
            config.model,
            dtype=config.dtype,
            device=config.device,
            lora=config.lora,
            tiny=config.tiny,
            seed=config.seed,
            report=report,
        )
    )
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

    def reload(folder: Path) -> nn.Module:
        return load_model(str(folder), dtype=dtype_name(network), device=str(network.device)).model

    return Built(
        loaded=loaded,
        renderer=renderer,
        policy=TrainedPolicy(scorer, config.optimizer),
        sampler=sampler if sampled is network else Rounded(sampler, loaded.model, sampled.model),
        reload=reload,
        context=getattr(loaded.model.config, "max_position_embeddings", 0),
    )


def given_model(model: nn.Module, reader: Any) -> Loaded:
    """A model passed from Python, with its tokenizer or processor."""
    tokenizer, processor = words_of(reader)
    return Loaded(model.eval(), tokenizer, type(model).__name__, processor)


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
