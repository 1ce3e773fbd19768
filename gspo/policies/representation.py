"""A backbone and a head over classes as a policy (GRPO-RM): everything that could be answered is scored at once.

Ren et al. 2025, https://arxiv.org/abs/2511.15256: the group of a question is the whole set of classes, so nothing is
sampled, and the policy is the softmax over them. A question is an image, or with a dense head each of its pixels.
Units are the classes of one question after another: [B,U] with U = questions x classes.
"""

import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gspo.policies.master import AdamW
from gspo.policies.payload import Payload
from gspo.policies.trained import TrainedPolicy, scored
from gspo.types import Scores, Step

Pool = Literal["cls", "mean"]
HEAD = "head.safetensors"
SHAPE = "representation.json"


class RepresentationModel(nn.Module):
    """A vision backbone of transformers (timm's through its wrapper) and a linear head.

    The backbone maps `pixel_values` [N,K,H,W] to `last_hidden_state`: tokens [N,T,D], patches in reading order behind
    any special ones, or a map [N,D,h,w].
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, pool: Pool = "cls", is_dense: bool = False) -> None:
        super().__init__()
        self.backbone, self.head, self.pool, self.is_dense = backbone, head, pool, is_dense
        if head.out_features < 2:
            raise ValueError(f"the head has {head.out_features} class: a choice needs at least two")

    @property
    def config(self) -> Any:
        return self.backbone.config

    def features(self, pixels: Tensor) -> Tensor:
        """[N,D]; of a dense head [N,h,w,D], one for every patch."""
        states = self.backbone(pixel_values=pixels).last_hidden_state
        if not self.is_dense:
            if states.ndim == 4:
                return states.mean(dim=(2, 3))
            return states[:, 0] if self.pool == "cls" else states.mean(dim=1)
        if states.ndim == 4:
            return states.permute(0, 2, 3, 1)
        height, width = self._grid(states.shape[1], pixels.shape[-2:])
        return states[:, states.shape[1] - height * width :].unflatten(1, (height, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N,Q,C]: one question, or one for every pixel in reading order."""
        logits = self.head(self.features(pixels))
        if not self.is_dense:
            return logits[:, None]
        full = nn.functional.interpolate(logits.permute(0, 3, 1, 2), size=pixels.shape[-2:], mode="bilinear")
        return full.flatten(2).transpose(1, 2)

    def _grid(self, tokens: int, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = getattr(self.config, "patch_size", None)
        if isinstance(patch, int) and (size[0] // patch) * (size[1] // patch) <= tokens:
            return size[0] // patch, size[1] // patch
        side = math.isqrt(tokens)
        if side * side not in (tokens, tokens - 1):
            raise ValueError(f"cannot tell how {tokens} tokens of {type(self.backbone).__name__} lie in the image")
        return side, side

    def save_pretrained(self, folder: Any) -> None:
        """The backbone as an ordinary transformers folder, the head beside it."""
        self.backbone.save_pretrained(folder)
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in self.head.state_dict().items()}, Path(folder) / HEAD
        )
        shape = {"classes": self.head.out_features, "pool": self.pool, "is_dense": self.is_dense}
        (Path(folder) / SHAPE).write_text(json.dumps(shape))

    @classmethod
    def from_pretrained(cls, folder: Any, **kwargs: Any) -> "RepresentationModel":
        """What `save_pretrained` wrote."""
        shape = json.loads((Path(folder) / SHAPE).read_text())
        weights = load_file(Path(folder) / HEAD)
        backbone = vision_backbone(str(folder), **kwargs)
        head = nn.Linear(weights["weight"].shape[1], shape["classes"], bias="bias" in weights)
        head.load_state_dict(weights)
        return cls(backbone, head, shape["pool"], shape["is_dense"]).eval()


def vision_backbone(name: str, **kwargs: Any) -> nn.Module:
    """A backbone of transformers (or timm) by folder or id, without a pooler: heads here read its hidden states."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(name)
    kind = AutoModel._model_mapping.get(type(config), None)
    if kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        kwargs["add_pooling_layer"] = False
    return AutoModel.from_pretrained(name, **kwargs)


class RepresentationNetwork:
    """A `RepresentationModel` as what `TrainedPolicy` trains."""

    def __init__(self, model: RepresentationModel) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.head.weight.dtype

    @property
    def classes(self) -> int:
        return self.model.head.out_features

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def logprobs(self, images: tuple[Any, ...]) -> Tensor:
        """[N,Q,C] in at least float32; images are arrays [K,H,W]."""
        pixels = torch.from_numpy(np.stack(images)).to(self.device, self.dtype)
        logits = self.model(pixels)
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)

    def tokens(self, image: Any) -> int:
        """Patches of an image, about: what a micro-batch counts."""
        patch = getattr(self.model.config, "patch_size", None) or 1
        return max(1, image.shape[-2] * image.shape[-1] // (patch * patch if isinstance(patch, int) else 1))


@dataclass(frozen=True, kw_only=True)
class ClassScorer:
    """Log-probs of all classes of each row's questions."""

    network: RepresentationNetwork
    micro_batch_tokens: int
    keeps_groups_whole: bool = False
    redraws: ClassVar[bool] = False

    def logprobs(self, step: Step) -> Scores:
        """See `scored`."""
        return scored(self, step)

    def score(self, part: Step, entropy: str) -> Scores:
        """`entropy` of a unit is that of its question."""
        payload: Payload = part.payload
        assert payload.inputs is not None
        logprobs = self.network.logprobs(payload.inputs)
        mask = part.mask
        if logprobs.shape[1] * logprobs.shape[2] != mask.shape[1]:
            raise ValueError(f"{mask.shape[1]} units for {logprobs.shape[1]} x {logprobs.shape[2]} classes of an image")
        of_question = -(logprobs.exp() * logprobs).sum(dim=-1, keepdim=True).expand_as(logprobs)
        blank = lambda x: x.flatten(1).masked_fill(~mask, 0.0)  # noqa: E731
        return Scores(logprobs=blank(logprobs), entropy=blank(of_question))

    def micro_batches(self, step: Step) -> list[list[int]]:
        """Rows in order, as many as the budget of patches holds."""
        rows = len(step.mask)
        each = self.network.tokens(step.payload.inputs[0]) if rows else 1
        size = max(1, self.micro_batch_tokens // each)
        return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]

    def with_model(self, model: nn.Module) -> "ClassScorer":
        assert isinstance(model, RepresentationModel)
        return replace(self, network=RepresentationNetwork(model))

    def imitating(self) -> "ClassScorer":
        return self


def RepresentationPolicy(
    backbone: nn.Module,
    head: nn.Linear,
    optimizer: AdamW = AdamW(lr=1e-4),
    *,
    pool: Pool = "cls",
    is_dense: bool = False,
    micro_batch_tokens: int = 16384,
) -> TrainedPolicy:
    """A policy over the classes of `head`, from modules: see `RepresentationModel`."""
    network = RepresentationNetwork(RepresentationModel(backbone, head, pool, is_dense).eval())
    return TrainedPolicy(ClassScorer(network=network, micro_batch_tokens=micro_batch_tokens), optimizer)
