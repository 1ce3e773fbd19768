"""A causal language model with its sampler."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gspo.config import RunConfig
from gspo.models import Loaded, load_model
from gspo.objectives.base import UnitObjective
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.network import Network
from gspo.policies.trained import TrainedPolicy
from gspo.renderers import Renderer
from gspo.samplers.in_process import InProcess
from gspo.training.kinds.base import Built, dtype_name


def build_causal_lm(
    config: RunConfig, terms: Sequence[UnitObjective], report: Callable[[str], None], model: Any, tokenizer: Any
) -> Built:
    loaded = (
        Loaded(model.eval(), tokenizer, type(model).__name__)
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
    renderer = Renderer(
        loaded.tokenizer,
        generation=loaded.model.generation_config,
        system_prompt=config.system_prompt,
        chat=config.chat,
        stop=config.stop,
        strip_thinking=config.strip_thinking,
    )
    network = Network(loaded.model, config.checkpoint_activations, config.compile)
    scorer = TokenScorer(
        network=network,
        scoring=config.sampling,
        micro_batch_tokens=config.micro_batch_tokens,
        pad_id=renderer.pad_id,
        layout=config.layout,
        keeps_groups_whole=any(term.traits.keeps_groups_whole for term in terms),
    )

    def reload(folder: Path) -> nn.Module:
        return load_model(str(folder), dtype=dtype_name(network), device=str(network.device)).model

    return Built(
        loaded=loaded,
        renderer=renderer,
        policy=TrainedPolicy(scorer, config.optimizer),
        sampler=InProcess(network, renderer.stop_ids, renderer.pad_id, config.sampler_rows),
        reload=reload,
        context=getattr(loaded.model.config, "max_position_embeddings", 0),
    )
