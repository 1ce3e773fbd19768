"""A masked diffusion language model as a policy (ESPO, 2512.03759): units are completion positions.

The log-likelihood of a unit is its share of what `masks` makes of the model's predictions, an evidence lower bound or
a mean-field product; the sum over a row's units is the sequence's. Under GSPO that gives ESPO's objective,

    rho = exp((ELBO - ELBO_old) / L)        clipped, times the advantage of the sequence,

and under a token objective such as GRPO the token-level baseline. Behind a completion that is shorter than the canvas
stand masks in every pass: what might follow is left open, and the likelihood is that of the units alone.

Certainty: masks, weights, shared draws, L and the clip were read in the released code by the design notes; what stands
behind a completion that ends early is chosen here (the released code scores all positions, `length = "fixed"`).
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from gspo.policies.diffusion_network import DiffusionNetwork
from gspo.policies.masks import Elbo, Masking
from gspo.policies.master import AdamW
from gspo.policies.micro_batches import blocks_of_rows, by_width
from gspo.policies.payload import Payload
from gspo.policies.trained import TrainedPolicy, scored
from gspo.types import Scores, Step

PAPER = Elbo()
"""As in the paper: two draws, coupled."""


@dataclass(frozen=True, kw_only=True)
class ElboScorer:
    """Scores completions under a network, at temperature 1 whatever the sampler's: a bound has no temperature.

    Entropy is that of the predictions of a unit where it is hidden, averaged over those passes.
    """

    network: DiffusionNetwork
    canvas: int
    """Positions that a completion is decoded on."""
    masking: Masking = PAPER
    micro_batch_tokens: int = 16384
    """Tokens that go through the network at once, those of all passes counted."""
    keeps_groups_whole: bool = False
    without_adapters: bool = False
    """Scores with a peft network's adapters switched off: the reference of a LoRA run."""

    @property
    def redraws(self) -> bool:
        return self.masking.redraws

    def logprobs(self, step: Step) -> Scores:
        """See `scored`."""
        with self.network.model.disable_adapter() if self.without_adapters else nullcontext():
            return scored(self, step)

    def with_model(self, model: nn.Module) -> "ElboScorer":
        return replace(self, network=self.network.with_model(model))

    def imitating(self) -> "ElboScorer":
        return self

    def micro_batches(self, step: Step) -> list[list[int]]:
        """Rows of like width, as many as the budget holds with all their passes."""
        keys = step.group.tolist() if self.keeps_groups_whole else range(len(step.group))
        tokens = [range(self.masking.number * width) for width in self._widths(step.payload)]
        return by_width(blocks_of_rows(keys), [()] * len(tokens), tokens, self.micro_batch_tokens)

    def score(self, part: Step, entropy: str) -> Scores:
        """A forward pass for each width; what is hidden in it is predicted from the rest."""
        mask = part.mask.cpu().numpy()
        passes = self.masking.passes(mask, part.rollout.cpu().numpy(), part.payload.draw)
        weight = torch.from_numpy(passes.weight).to(self.network.device)
        logprobs, entropies = [], []
        blocks = blocks_of_rows(self._widths(part.payload))
        for rows in blocks:
            said, unsure = self._predicted(part.payload[rows], passes.hidden[rows], entropy)
            logprobs.append((said * weight[rows].to(said.dtype)[:, :, None]).sum(dim=1))
            times = torch.from_numpy(passes.hidden[rows].sum(axis=1)).clamp(min=1).to(unsure.device)
            entropies.append(unsure.sum(dim=1) / times)
        back = torch.tensor([row for rows in blocks for row in rows], device=self.network.device).argsort()
        return Scores(logprobs=torch.cat(logprobs)[back], entropy=torch.cat(entropies)[back])

    def _widths(self, payload: Payload) -> list[int]:
        return [
            len(prompt) + max(self.canvas, len(completion))
            for prompt, completion in zip(payload.prompt, payload.completion, strict=True)
        ]

    def _predicted(self, payload: Payload, hidden: np.ndarray, entropy: str) -> tuple[Tensor, Tensor]:
        """[B,K,U] log-probs of the hidden units in each pass, and the entropies of their predictions; 0 elsewhere."""
        device, (b, k, u) = self.network.device, hidden.nonzero()
        starts = np.array([len(prompt) for prompt in payload.prompt])
        ids = _canvases(payload, self._widths(payload)[0], self.network.mask_id)
        target = torch.from_numpy(ids[b, starts[b] + u]).to(device)
        canvases = np.repeat(ids[:, None], hidden.shape[1], axis=1)
        canvases[b, k, starts[b] + u] = self.network.mask_id
        logits = self.network.logits(torch.from_numpy(canvases).flatten(0, 1).to(device))
        place = torch.from_numpy(b * hidden.shape[1] + k).to(device), torch.from_numpy(starts[b] + u).to(device)
        chosen = logits[place]
        log_p = (chosen if chosen.dtype == torch.float64 else chosen.float()).log_softmax(dim=-1)
        with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
            unsure = -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(dim=-1)
        where = tuple(torch.from_numpy(index).to(device) for index in (b, k, u))
        blank = torch.zeros(hidden.shape, dtype=log_p.dtype, device=device)
        said = log_p.gather(1, target[:, None])[:, 0]
        return blank.index_put(where, said), blank.index_put(where, unsure)


def _canvases(payload: Payload, width: int, mask_id: int) -> np.ndarray:
    """[B,T]: each prompt, its completion, and masks up to `width`."""
    ids = np.full((len(payload.prompt), width), mask_id, dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(payload.prompt, payload.completion, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(completion)] = completion
    return ids


def DiffusionPolicy(
    model: nn.Module,
    mask_id: int,
    *,
    canvas: int,
    logit_shift: int = 0,
    masking: Masking = PAPER,
    micro_batch_tokens: int = 16384,
    optimizer: AdamW = AdamW(),
) -> TrainedPolicy:
    """A model that trains under `ElboScorer`; `gspo.train` builds the same from `policy = "diffusion"`."""
    network = DiffusionNetwork(model, mask_id, logit_shift)
    scorer = ElboScorer(network=network, canvas=canvas, masking=masking, micro_batch_tokens=micro_batch_tokens)
    return TrainedPolicy(scorer, optimizer)
