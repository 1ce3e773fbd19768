"""A model of image tokens: a causal language model with image tokens in its vocabulary, or Janus."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gspo.config import RunConfig
from gspo.data import Dataset
from gspo.models import Loaded, TinyConfig, character_tokenizer, tiny_shape
from gspo.objectives.base import UnitObjective
from gspo.policies.config import ImageTokensConfig
from gspo.policies.image_network import ImageNetwork, JanusCodes, VocabularyCodes
from gspo.policies.image_tokens import ImageScorer
from gspo.renderers import Renderer
from gspo.renderers.images import ImageRenderer, grid
from gspo.rewards import load_function
from gspo.samplers.image_tokens import ImageSampler
from gspo.training.kinds.base import Built, load, reloading

JANUS = "janus"


def build_image_tokens(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    dataset: Dataset,
    report: Callable[[str], None],
    model: Any,
    tokenizer: Any,
) -> Built:
    settings = config.policy
    assert isinstance(settings, ImageTokensConfig)
    if config.lora.rank:
        raise ValueError('lora.rank is for language models: it cannot go with policy = "image_tokens"')
    make_tiny = lambda tiny, seed: tiny_image_model(tiny, settings.levels, seed)  # noqa: E731
    loaded = load(config, report, model, tokenizer, read_model, make_tiny)
    words = Renderer(loaded.tokenizer, generation=loaded.model.generation_config, chat=config.chat)
    network = ImageNetwork(loaded.model, codes_of(loaded.model, settings, words), words.pad_id)
    decode = load_function(settings.decoder) if settings.decoder else built_in_decoder(network, settings)
    codes = settings.height * settings.width
    scorer = ImageScorer(
        network=network,
        sampling=config.sampling,
        micro_batch_tokens=config.micro_batch_tokens,
        guidance=settings.guidance,
        scoring=settings.scoring,
        keeps_groups_whole=any(term.traits.keeps_groups_whole for term in terms),
    )

    return Built(
        loaded=loaded,
        renderer=ImageRenderer(words, settings.levels, decode),
        scorer=scorer,
        sampler=ImageSampler(
            network,
            codes=codes,
            guidance=settings.guidance,
            scoring=settings.scoring,
            max_rows=config.sampler_rows,
        ),
        reload=reloading(network, read_model),
        context=codes,
    )


def codes_of(model: nn.Module, settings: ImageTokensConfig, words: Renderer) -> VocabularyCodes | JanusCodes:
    """Janus by its type; of any other model the image tokens are the last of its vocabulary, unless settings say."""
    if model.config.model_type == JANUS:
        begin = (words.tokenizer.bos_token_id, model.config.image_token_id)
        return JanusCodes(
            levels=settings.levels, begin_ids=tuple(i for i in begin if i is not None), pad_id=words.pad_id
        )
    size = model.get_input_embeddings().weight.shape[0]
    return VocabularyCodes(
        levels=settings.levels,
        first_id=settings.first_id if settings.first_id >= 0 else size - settings.levels,
        null_ids=words.prompt_ids(settings.null_prompt),
    )


def built_in_decoder(network: ImageNetwork, settings: ImageTokensConfig) -> Callable[[tuple[int, ...]], Any]:
    """Janus has a decoder of its own; other codes are levels of grey."""
    if isinstance(network.codes, VocabularyCodes):
        return grid(settings.height, settings.width, settings.levels)

    @torch.no_grad()
    def decode(codes: tuple[int, ...]) -> Any:
        image = network.model.decode_image_tokens(torch.tensor([codes], device=network.device))[0]
        return (image.float().clamp(-1, 1).cpu().numpy() + 1) / 2

    return decode


def tiny_image_model(tiny: TinyConfig, levels: int, seed: int) -> Loaded:
    """A randomly initialised Qwen3 whose vocabulary is an alphabet and then the levels."""
    from transformers import Qwen3ForCausalLM

    tokenizer = character_tokenizer(tiny.alphabet)
    shape = tiny_shape(tiny, tokenizer)
    shape.vocab_size = len(tokenizer) + levels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(shape)
    return Loaded(model, tokenizer, f"tiny Qwen3 with {levels} image tokens, random weights")


def read_model(path: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or id."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    if AutoConfig.from_pretrained(path).model_type == JANUS:
        from transformers import JanusForConditionalGeneration

        return JanusForConditionalGeneration.from_pretrained(path, dtype="auto"), tokenizer
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto"), tokenizer
