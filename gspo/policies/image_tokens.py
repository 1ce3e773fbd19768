"""Autoregressive image tokens as a policy: units are the codes of an image, in raster order.

For DPO against GRPO in image generation (2505.17017) and whatever else draws images token by token. Images are sampled
with classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598):

    logits = u + w (c - u),   c: given the prompt, u: given none                                   (1)

What trains is declared by `scoring`: "guided" scores (1), the distribution that was sampled from, so that the ratio is
between the policies that acted; "conditional" scores c alone, as T2I-R1's code does: cheaper by half, and off-policy
from the first update on unless w = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gspo.policies.image_network import ImageNetwork
from gspo.policies.master import AdamW
from gspo.policies.payload import Payload
from gspo.policies.trained import TrainedPolicy, scored
from gspo.sampling import Sampling, sampling_logits
from gspo.types import Scores, Step

Scoring = Literal["guided", "conditional"]


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """(1), in at least float32."""
    c, u = (x if x.dtype == torch.float64 else x.float() for x in (conditional, unconditional))
    return u + guidance * (c - u)


@dataclass(frozen=True, kw_only=True)
class ImageScorer:
    """Log-probs of image codes. `sampling`: temperature, top-p and top-k on the (guided) logits."""

    network: ImageNetwork
    sampling: Sampling
    micro_batch_tokens: int
    guidance: float = 1.0
    scoring: Scoring = "guided"
    keeps_groups_whole: bool = False
    redraws: ClassVar[bool] = False

    @property
    def is_guided(self) -> bool:
        """Whether scoring needs the unconditional model."""
        return self.scoring == "guided" and self.guidance != 1

    def logprobs(self, step: Step) -> Scores:
        """See `scored`."""
        return scored(self, step)

    def score(self, part: Step, entropy: str) -> Scores:
        payload: Payload = part.payload
        codes = torch.tensor(payload.completion, device=self.network.device)
        logits = self.network.head(self.network.states(payload.prompt, codes))
        if self.is_guided:
            null = [self.network.codes.unconditional(prompt) for prompt in payload.prompt]
            logits = guided(logits, self.network.head(self.network.states(null, codes)), self.guidance)
        chosen = codes.flatten()
        logprobs = sampling_logits(logits.flatten(0, 1), self.sampling, keep=chosen).log_softmax(dim=-1)
        shape, mask = codes.shape, part.mask
        of_code = logprobs.gather(1, chosen[:, None])[:, 0].reshape(shape)
        safe = logprobs.masked_fill(logprobs == -torch.inf, 0.0)  # 0 log 0 is 0, and so is its gradient
        spread = -(logprobs.exp() * safe).sum(dim=-1).reshape(shape)
        if entropy != "gradient":
            spread = spread.detach()
        return Scores(logprobs=of_code.masked_fill(~mask, 0.0), entropy=spread.masked_fill(~mask, 0.0))

    def micro_batches(self, step: Step) -> list[list[int]]:
        """Rows in order, as many as the budget holds; whole groups where an objective compares their rows."""
        payload: Payload = step.payload
        times = 2 if self.is_guided else 1
        cost = [times * (len(p) + len(c)) for p, c in zip(payload.prompt, payload.completion, strict=True)]
        return packed_rows(self._blocks(step), cost, self.micro_batch_tokens)

    def _blocks(self, step: Step) -> list[list[int]]:
        if not self.keeps_groups_whole:
            return [[row] for row in range(len(step.mask))]
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(step.group.tolist()):
            groups.setdefault(group, []).append(row)
        return list(groups.values())

    def with_model(self, model: nn.Module) -> "ImageScorer":
        return replace(self, network=self.network.with_model(model))

    def imitating(self) -> "ImageScorer":
        """The conditional model's own distribution."""
        return replace(self, sampling=Sampling(), scoring="conditional")


def packed_rows(blocks: Sequence[Sequence[int]], cost: Sequence[int], budget: int) -> list[list[int]]:
    """Blocks one after another, cut where the budget is full; a block alone may exceed it."""
    found: list[list[int]] = []
    used = 0
    for rows in blocks:
        need = sum(cost[row] for row in rows)
        if not found or used + need > budget:
            found.append([])
            used = 0
        found[-1] += rows
        used += need
    return found


def ImageTokenPolicy(
    network: ImageNetwork,
    optimizer: AdamW = AdamW(),
    *,
    guidance: float = 1.0,
    scoring: Scoring = "guided",
    sampling: Sampling = Sampling(),
    micro_batch_tokens: int = 16384,
) -> TrainedPolicy:
    """A policy over the codes of images."""
    scorer = ImageScorer(
        network=network,
        sampling=sampling,
        micro_batch_tokens=micro_batch_tokens,
        guidance=guidance,
        scoring=scoring,
    )
    return TrainedPolicy(scorer, optimizer)
