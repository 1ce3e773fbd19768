"""Self-supervised pre-training of a vision backbone: the cold start of a policy over classes, which sees no label.

Contrastive learning after Chen et al. 2020 (SimCLR, https://arxiv.org/abs/2002.05709): two random views of each image;
features pass through a projection that is thrown away afterwards;

    loss = mean over views a of -log( exp(z_a . z_b / t) / sum over all other views c of exp(z_a . z_c / t) )    (1)

with unit vectors z, b the other view of the same image. Views for small grey images: shifted, scaled in brightness,
partly blanked, noised.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gspo.collectors.class_sets import IMAGE
from gspo.config import RunConfig
from gspo.data import Row, rows_at
from gspo.policies.master import AdamW, MasterWeights
from gspo.policies.representation import RepresentationNetwork

TEMPERATURE = 0.2


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """(1) of two views' projections, [N,D] each; scalar."""
    views = nn.functional.normalize(torch.cat([first, second]), dim=-1)
    likeness = views @ views.T / temperature
    likeness = likeness.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return nn.functional.cross_entropy(likeness, partner)


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image [N,K,H,W], drawn from `generator` (on the CPU)."""
    number, _, height, width = images.shape
    draw = lambda *shape: torch.rand(shape, generator=generator).to(images)  # noqa: E731
    reach = max(1, height // 8)
    move = lambda: torch.randint(-reach, reach + 1, (number,), generator=generator).tolist()  # noqa: E731
    moved = torch.stack([image.roll((y, x), dims=(1, 2)) for image, y, x in zip(images, move(), move(), strict=True)])
    bright = moved * (0.6 + 0.8 * draw(number, 1, 1, 1))
    rows, columns = torch.arange(height).to(images), torch.arange(width).to(images)
    side = height / 8
    top, left = (draw(number, 1, 1) * (length - side) for length in (height, width))
    hidden = ((rows[None, :, None] - top).div(side).floor() == 0) & (
        (columns[None, None] - left).div(side).floor() == 0
    )
    return bright.masked_fill(hidden[:, None], 0.0) + 0.05 * torch.randn(images.shape, generator=generator).to(images)


def pretrain(
    network: RepresentationNetwork,
    prepare: Callable[[Any], np.ndarray],
    config: RunConfig,
    rows: Sequence[Row],
    is_done: Callable[[int, float], bool],
) -> int:
    """Up to `cold_start.steps` updates of the backbone on the rows' images. Returns the updates made."""
    settings, model = config.cold_start, network.model
    if model.is_dense and model.features(_stacked(network, prepare, [rows[0]])).ndim != 4:
        raise ValueError("the backbone of a dense head has no map of features to pre-train")
    generator = torch.Generator().manual_seed(config.seed)
    width = model.head.in_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        projection = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
    projection.to(network.device, network.dtype)
    trained = {**dict(model.backbone.named_parameters()), **dict(projection.named_parameters(prefix="projection"))}
    weights = MasterWeights(trained.items(), AdamW(lr=settings.lr, weight_decay=1e-2))
    for step in range(settings.steps):
        chosen = [rows[i] for i in rows_at(step * settings.batch, settings.batch, len(rows), config.seed)]
        images = _stacked(network, prepare, chosen)
        ends = [projection(_whole(model.features(view(images, generator)))) for _ in range(2)]
        loss = contrastive_loss(*ends)
        loss.backward()
        weights.step(settings.lr * min(1.0, (step + 1) / max(settings.warmup_steps, 1)))
        if is_done(step + 1, loss.item()):
            return step + 1
    return settings.steps


def _stacked(network: RepresentationNetwork, prepare: Callable[[Any], np.ndarray], rows: Sequence[Row]) -> Tensor:
    return torch.from_numpy(np.stack([prepare(row[IMAGE]) for row in rows])).to(network.device, network.dtype)


def _whole(features: Tensor) -> Tensor:
    """[N,D] of an image; the mean over a map of features [N,h,w,D]."""
    return features.mean(dim=(1, 2)) if features.ndim == 4 else features
