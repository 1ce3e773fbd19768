"""Completions of a masked diffusion model: a canvas of masks, decoded block by block from left to right.

In each pass every hidden position of the block has a candidate, drawn at the sampling temperature, and those the model
is surest of (probability at temperature 1) are kept for good. Released LLaDA decodes so (2502.09992).

Position and pass are counters of each completion's own random stream, and rows of one length are decoded together
without padding: what a prompt says follows from weights and counters, up to the rounding of who stands beside it.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gspo.policies.diffusion_network import DiffusionNetwork
from gspo.samplers.base import SampleRequest
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import Sampling, draw
from gspo.types import Completion


class BlockDiffusion:
    """Samples from a `DiffusionNetwork`. `max_rows` bounds the canvases decoded at once.

    `until_eos` cuts a completion behind its first end token; otherwise it is the whole canvas. The log-probs are those
    that each token was drawn with, given what stood there by then: no likelihood of the sequence.
    """

    scores: ClassVar[Literal["none"]] = "none"

    def __init__(
        self,
        network: DiffusionNetwork,
        stop_ids: Sequence[int],
        *,
        block: int = 32,
        denoising_steps: int = 0,
        until_eos: bool = False,
        max_rows: int = 512,
    ) -> None:
        self.network = network
        self.stop_ids = np.array(sorted(set(stop_ids)))
        self.block, self.denoising_steps = block, denoising_steps
        self.until_eos, self.max_rows = until_eos, max_rows
        self.version = 0

    def sync_weights(self, policy: object, version: int) -> None:
        """The weights are the policy's own: only the version moves."""
        self.version = version

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """Completions of each request, in the order of `requests`; decoded by length, then by counters."""
        results: list[list[Completion]] = [[] for _ in requests]
        alike: dict[tuple[Sampling, int, int], list[int]] = {}
        for i in sorted(range(len(requests)), key=lambda i: _order(requests[i])):
            request = requests[i]
            alike.setdefault((request.sampling, len(request.prompt_ids), request.max_completion_tokens), []).append(i)
        for (sampling, _, length), members in alike.items():
            prompts = [requests[i].prompt_ids for i in members for _ in range(requests[i].n)]
            streams = [stream for i in members for stream in requests[i].streams()]
            owners = [i for i in members for _ in range(requests[i].n)]
            for start in range(0, len(owners), self.max_rows):
                part = slice(start, start + self.max_rows)
                decoded = self._decoded(prompts[part], stream_keys(streams[part]), length, sampling)
                for owner, completion in zip(owners[part], decoded, strict=True):
                    results[owner].append(completion)
        return results

    def _decoded(
        self, prompts: Sequence[tuple[int, ...]], keys: np.ndarray, length: int, sampling: Sampling
    ) -> list[Completion]:
        """One completion for each prompt; all prompts are of one length."""
        start, device = len(prompts[0]), self.network.device
        ids = torch.full((len(prompts), start + length), self.network.mask_id, device=device)
        ids[:, :start] = torch.tensor(prompts, device=device)
        logprobs = torch.zeros(len(prompts), length, device=device)
        live, pass_number = torch.arange(len(prompts), device=device), 0
        for begin, counts in schedule(length, self.block, self.denoising_steps):
            columns = torch.arange(start + begin, start + begin + sum(counts), device=device)
            for count in counts:
                canvas = ids[live]
                drawn, logprob, sure = self._candidates(
                    canvas, columns, keys[live.cpu().numpy()], pass_number, sampling
                )
                is_hidden = canvas[:, columns] == self.network.mask_id
                # A stable order: which of two equals comes first must not depend on the rows beside it.
                best = sure.masked_fill(~is_hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]
                ids[live[:, None], columns[best]] = drawn.gather(1, best)
                logprobs[live[:, None], columns[best] - start] = logprob.gather(1, best)
                pass_number += 1
            if self.until_eos:
                stops = torch.from_numpy(self.stop_ids).to(device)
                live = live[~torch.isin(ids[live][:, columns], stops).any(dim=1)]
            if not len(live):
                break
        said, how = ids[:, start:].cpu().numpy(), logprobs.cpu().numpy()
        return [self._completion(said[row], how[row]) for row in range(len(prompts))]

    def _candidates(
        self, canvas: Tensor, columns: Tensor, keys: np.ndarray, pass_number: int, sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[R,C] of the columns: a token drawn for each, its log-prob as drawn, the model's probability of it."""
        logits = self.network.logits(canvas)[:, columns]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits[..., self.network.mask_id] = -torch.inf  # what is revealed is no mask
        counters = pass_number * canvas.shape[1] + columns.cpu().numpy()
        uniform = uniforms(np.repeat(keys, len(columns)), np.tile(counters, len(keys)))
        token, logprob = draw(logits.flatten(0, 1), sampling, uniform)
        shape = logits.shape[:2]
        sure = logits.softmax(dim=-1).gather(2, token.view(*shape, 1))[..., 0]
        return token.view(shape), logprob.view(shape).to(torch.float32), sure

    def _completion(self, ids: np.ndarray, logprobs: np.ndarray) -> Completion:
        ends = np.flatnonzero(np.isin(ids, self.stop_ids))
        length = int(ends[0]) + 1 if len(ends) and self.until_eos else len(ids)
        return Completion(
            ids=tuple(ids[:length].tolist()),
            logprobs=tuple(logprobs[:length].tolist()),
            policy_version=self.version,
            finish_reason="stop" if len(ends) else "length",
        )


def schedule(length: int, block: int, denoising_steps: int) -> list[tuple[int, list[int]]]:
    """(first position, positions revealed in each pass) of every block.

    `denoising_steps` are shared out equally over the blocks, at least one each and at most one for every position; 0:
    one for every position. Where positions do not divide by passes, the first passes reveal one more.
    """
    blocks = -(-length // block)
    steps = max(1, denoising_steps // blocks) if denoising_steps else block
    found = []
    for begin in range(0, length, block):
        size = min(block, length - begin)
        passes = min(steps, size)
        found.append((begin, [size // passes + (i < size % passes) for i in range(passes)]))
    return found


def _order(request: SampleRequest) -> tuple[int, ...]:
    return (request.prompt_id, request.seed, request.step, request.turn, *request.indices)
