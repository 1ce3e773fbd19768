"""A causal language model with its sampler."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from gspo.collectors.offline import is_offline
from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.models import Loaded, pick_device
from gspo.objectives.base import UnitObjective
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.config import CausalLMConfig
from gspo.policies.network import Network
from gspo.renderers import Renderer
from gspo.samplers.base import Sampler
from gspo.samplers.config import ProcessConfig, ServerConfig
from gspo.samplers.copied import Copied, InProcessOfItsOwn, copy_of
from gspo.samplers.in_process import InProcess
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

    return Built(
        loaded=loaded,
        renderer=renderer,
        scorer=scorer,
        sampler=chosen_sampler(config, settings, loaded, network, renderer),
        reload=reloading(network),
        repeats_old_pass=settings.routing == "R2",
        context=getattr(loaded.model.config, "max_position_embeddings", 0),
    )


def chosen_sampler(
    config: RunConfig, settings: CausalLMConfig, loaded: Loaded, network: Network, renderer: Renderer
) -> Sampler:
    """Servers, the network that trains, or a copy of it: in another dtype, in another process."""
    asked = config.sampler
    if isinstance(asked, ServerConfig):
        from gspo.samplers.connect import connect

        return connect(
            asked,
            model_config=loaded.model.config,
            tokenizer=loaded.tokenizer,
            stop_ids=renderer.stop_ids,
            rows=config.sampler_rows,
            max_completion_tokens=config.sampling.max_completion_tokens,
            experts=network.expert_layers,
            needs_routes=settings.routing == "R3",
        )
    make = partial(sampler_on, stop_ids=tuple(renderer.stop_ids), pad_id=renderer.pad_id, max_rows=config.sampler_rows)
    is_rounded = settings.sampler_dtype not in ("auto", dtype_name(network))
    dtype = getattr(torch, settings.sampler_dtype) if is_rounded else None
    if config.placement.places_samplers:
        from gspo.placement.samplers import on_copy

        return on_copy(loaded.model, dtype, make, config.placement)
    if isinstance(asked, ProcessConfig):
        copied = copy_of(loaded.model, dtype, pick_device(asked.device) if asked.device else None)
        process = InProcessOfItsOwn(make(copied), copied, asked.threads, asked.restarts)
        return Copied(process, copied)
    if not is_rounded:
        return InProcess(network, renderer.stop_ids, renderer.pad_id, config.sampler_rows)
    copied = copy_of(loaded.model, dtype)
    return Copied(make(copied), copied)


def sampler_on(model: nn.Module, stop_ids: tuple[int, ...], pad_id: int, max_rows: int) -> InProcess:
    """A sampler with a model of its own."""
    return InProcess(Network(model), stop_ids, pad_id, max_rows)


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
