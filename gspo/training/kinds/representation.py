"""A representation model over the classes of the data."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gspo.collectors.class_sets import ANSWER, IMAGE, LABELS, ClassSource
from gspo.config import RunConfig
from gspo.corrections import OldProbability
from gspo.data import Dataset
from gspo.models import TINY, Loaded, pick_device, without_progress_bars
from gspo.objectives.base import UnitObjective
from gspo.policies.config import RepresentationConfig
from gspo.policies.representation import (
    SHAPE,
    ClassScorer,
    RepresentationModel,
    RepresentationNetwork,
    vision_backbone,
)
from gspo.renderers.classes import ClassRenderer
from gspo.samplers.class_set import ClassSet
from gspo.training.kinds.base import Built, Competition, dtype_name
from gspo.training.self_supervised import pretrain

IMAGES_AT_ONCE = 256


def build_representation(
    config: RunConfig,
    terms: Sequence[UnitObjective],
    dataset: Dataset,
    report: Callable[[str], None],
    model: Any,
    tokenizer: Any,
) -> Built:
    """`model`: a `RepresentationModel` in place of what the settings name."""
    settings = config.policy
    assert isinstance(settings, RepresentationConfig)
    if config.lora.rank:
        raise ValueError('lora.rank is for language models: it cannot go with policy = "representation"')
    renderer = ClassRenderer(classes_of(dataset, settings))
    source = type(model).__name__ if model is not None else config.model
    made = model if model is not None else made_model(config, settings, len(renderer.classes))
    if made.head.out_features != len(renderer.classes):
        raise ValueError(f"the head has {made.head.out_features} classes and the data {len(renderer.classes)}")
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    network = RepresentationNetwork(made.eval().to(pick_device(config.device), dtype))
    scorer = ClassScorer(network=network, micro_batch_tokens=config.micro_batch_tokens)

    def reload(folder: Path) -> nn.Module:
        return RepresentationModel.from_pretrained(folder).to(network.device, getattr(torch, dtype_name(network)))

    prepare = prepared_by(config.model)
    return Built(
        loaded=Loaded(made, None, source),
        renderer=renderer,
        scorer=scorer,
        sampler=ClassSet(network, IMAGES_AT_ONCE),
        reload=reload,
        source=partial(ClassSource, accuracy=settings.accuracy, uniformity=settings.uniformity, prepare=prepare),
        warm_up=partial(pretrain, network, prepare, config),
    )


def competing_classes(settings: RepresentationConfig, dataset: Dataset) -> Competition:
    """The classes of a question compete."""
    return Competition(
        size=len(classes_of(dataset, settings)),
        rewards={"accuracy": settings.accuracy, "uniformity": settings.uniformity},
        corrections=(OldProbability(),) if settings.weighting == "pi_old" else (),
    )


def classes_of(dataset: Dataset, settings: RepresentationConfig) -> tuple[str, ...]:
    """The set of classes: the settings', or all that occur in the data. Raises ValueError where there is none."""
    if not len(dataset.train) or IMAGE not in dataset.train[0]:
        raise ValueError(f'policy = "representation" needs a column {IMAGE!r} in the data ({dataset.reading})')
    if settings.classes:
        return settings.classes
    column = LABELS if settings.is_dense else ANSWER
    if column not in dataset.train[0]:
        raise ValueError(f"the data has no column {column!r} with the right class ({dataset.reading})")
    if settings.is_dense:
        highest = max(int(np.max(row[LABELS])) for row in dataset.train)
        return tuple(str(i) for i in range(highest + 1))
    return tuple(sorted({str(row[ANSWER]) for row in dataset.train}))


def made_model(config: RunConfig, settings: RepresentationConfig, classes: int) -> RepresentationModel:
    """A tiny vision transformer of random weights; a folder that a run exported; or a backbone under a new head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model == TINY:
            backbone, width = tiny_vision(config, settings), config.tiny.hidden_size
        elif (Path(config.model) / SHAPE).is_file():
            return RepresentationModel.from_pretrained(config.model)
        else:
            backbone, width = pretrained_vision(config.model)
        head = nn.Linear(width, classes)
        nn.init.zeros_(head.weight)  # the first policy is uniform
        nn.init.zeros_(head.bias)
    return RepresentationModel(backbone, head, settings.pool, settings.is_dense)


def tiny_vision(config: RunConfig, settings: RepresentationConfig) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    shape = ViTConfig(
        hidden_size=config.tiny.hidden_size,
        num_hidden_layers=config.tiny.layers,
        num_attention_heads=config.tiny.heads,
        intermediate_size=config.tiny.intermediate_size,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(shape, add_pooling_layer=False)


def pretrained_vision(name: str) -> tuple[nn.Module, int]:
    """A backbone of transformers or timm, and its width."""
    try:
        with without_progress_bars():
            backbone = vision_backbone(name)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"backbone {name!r} could not be loaded: {reason}") from error
    width = getattr(backbone.config, "hidden_size", None) or getattr(backbone, "num_features", None)
    if width is None:
        raise ValueError(f"backbone {name!r} does not say how wide its features are (config.hidden_size)")
    return backbone, int(width)


def prepared_by(model: str) -> Callable[[Any], np.ndarray]:
    """From a row's image to an array [K,H,W]: as it is for the tiny model, else by the backbone's own processor."""
    if model == TINY or ((Path(model) / SHAPE).is_file() and not (Path(model) / "preprocessor_config.json").is_file()):
        return lambda image: np.asarray(image, dtype=np.float32)
    from transformers import AutoImageProcessor
    from transformers.image_utils import load_image

    try:
        processor = AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the image processor of {model!r} could not be loaded: {reason}") from error

    def prepare(image: Any) -> np.ndarray:
        picture = load_image(image) if isinstance(image, str) else image
        return np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], dtype=np.float32)

    return prepare
