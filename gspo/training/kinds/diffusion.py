"""A masked diffusion language model with its sampler."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.masked_models import read_masked_model, tiny_masked_model
from gspo.objectives.base import UnitObjective
from gspo.policies.config import DiffusionConfig
from gspo.policies.diffusion import ElboScorer
from gspo.policies.diffusion_network import DiffusionNetwork, mask_token
from gspo.policies.masks import Elbo, MeanField
from gspo.renderers import Renderer
from gspo.samplers.diffusion import BlockDiffusion
from gspo.training.kinds.base import Built, load, reloading


def build_diffusion(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    dataset: Dataset,
    report: Callable[[str], None],
    model: Any,
    tokenizer: Any,
) -> Built:
    settings = config.policy
    assert isinstance(settings, DiffusionConfig)
    refuse(config, terms)
    read = partial(read_masked_model, trusts_remote_code=settings.trust_remote_code)
    loaded = load(config, report, model, tokenizer, read, tiny_masked_model)
    renderer = Renderer(
        loaded.tokenizer,
        generation=getattr(loaded.model, "generation_config", None),
        system_prompt=config.system_prompt,
        chat=config.chat,
        stop=config.stop,
        strip_thinking=config.strip_thinking,
    )
    mask_id = mask_token(loaded.tokenizer, loaded.model, config.model if model is None else loaded.source)
    network = DiffusionNetwork(loaded.model, mask_id, settings.logit_shift)
    scorer = ElboScorer(
        network=network,
        canvas=config.sampling.max_completion_tokens,
        masking=masking_of(settings),
        micro_batch_tokens=config.micro_batch_tokens,
        keeps_groups_whole=any(term.traits.keeps_groups_whole for term in terms),
    )
    sampler = BlockDiffusion(
        network,
        renderer.stop_ids,
        block=settings.block,
        denoising_steps=settings.denoising_steps,
        until_eos=settings.length == "until_eos",
        max_rows=config.sampler_rows,
    )

    return Built(
        loaded=loaded,
        renderer=renderer,
        scorer=scorer,
        sampler=sampler,
        reload=reloading(network, read),
        context=network.positions,
        width=config.sampling.max_completion_tokens,
    )


def masking_of(settings: DiffusionConfig) -> Elbo | MeanField:
    if settings.likelihood == "mean_field":
        return MeanField()
    return Elbo(draws=settings.draws, is_coupled=settings.is_coupled)


def refuse(config: RunConfig, terms: Sequence[UnitObjective]) -> None:
    """Raises ValueError for settings of language models that write on."""
    if any("sampler" in term.traits.needs for term in terms):
        raise ValueError(
            'the objective compares with the sampler\'s log-probs, and the sampler of policy = "diffusion" has none of '
            "whole completions: remove corrections that read them"
        )
    for name in ("compile", "checkpoint_activations"):
        if getattr(config, name):
            raise ValueError(f'{name} is for causal language models: it cannot go with policy = "diffusion"')
