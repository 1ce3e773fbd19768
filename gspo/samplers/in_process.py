"""Sampling with the very weights that train: one prefill per prompt, shared by its group; finished rows leave.

The wave is ordered by (prompt id, index) and cut into blocks by a fixed budget, so that the arithmetic is a function
of weights and counters alone: the same state samples the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gspo.policies.network import Network
from gspo.samplers.base import SampleRequest
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import draw
from gspo.types import Completion

COMPACT_BELOW = 0.75
"""Finished rows leave the batch when the live share falls under this (leaving copies the cache)."""


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What came of a block, row by row."""

    ids: Tensor  # [R, T]
    logprobs: Tensor  # [R, T]
    lengths: Tensor  # [R]
    stopped: Tensor  # [R] bool


class InProcess:
    """Samples from a `Network`. `max_rows` bounds the completions decoded at once."""

    scores: ClassVar[Literal["exact"]] = "exact"

    def __init__(self, network: Network, stop_ids: Sequence[int], pad_id: int, max_rows: int = 512) -> None:
        if not stop_ids:
            raise ValueError("the sampler needs at least one stop token id; the tokenizer has no eos_token")
        self.network = network
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=network.device)
        self.pad_id = pad_id
        self.max_rows = max_rows
        self.version = 0

    def sync_weights(self, policy: object, version: int) -> None:
        """The weights are the policy's own: only the version moves."""
        self.version = version

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """Completions of each request, in the order of `requests`."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].prompt_id, i))
        results: list[list[Completion]] = [[] for _ in requests]
        for block in self._blocks([requests[i] for i in order]):
            drawn = self._draw([request for _, request in block])
            row = 0
            for position, request in block:
                results[order[position]] = [self._completion(drawn, row + i) for i in range(request.n)]
                row += request.n
        return results

    def _blocks(self, requests: list[SampleRequest]) -> list[list[tuple[int, SampleRequest]]]:
        blocks: list[list[tuple[int, SampleRequest]]] = []
        rows, sampling = 0, None
        for position, request in enumerate(requests):
            if not blocks or rows + request.n > self.max_rows or request.sampling != sampling:
                blocks.append([])
                rows, sampling = 0, request.sampling
            blocks[-1].append((position, request))
            rows += request.n
        return blocks

    def _completion(self, drawn: _Drawn, row: int) -> Completion:
        length = int(drawn.lengths[row])
        return Completion(
            ids=tuple(drawn.ids[row, :length].tolist()),
            logprobs=tuple(drawn.logprobs[row, :length].tolist()),
            policy_version=self.version,
            finish_reason="stop" if drawn.stopped[row] else "length",
        )

    @torch.no_grad()
    def _draw(self, requests: list[SampleRequest]) -> _Drawn:
        network, sampling = self.network, requests[0].sampling
        device, limit = network.device, sampling.max_completion_tokens
        counts = torch.tensor([r.n for r in requests], device=device)
        keys = stream_keys([(r.seed, r.step, r.prompt_id, i) for r in requests for i in range(r.n)])
        rows = len(keys)
        cache, logits, mask = self._prefill(requests, counts)
        is_ragged = not bool(mask.all())
        lengths = mask.sum(dim=1)
        ids = torch.full((rows, limit), self.pad_id, device=device)
        logprobs = torch.zeros((rows, limit), dtype=torch.float32, device=device)
        total = torch.zeros(rows, dtype=torch.long, device=device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        live = torch.arange(rows, device=device)  # row of the block behind each row of the batch
        running = torch.ones(rows, dtype=torch.bool, device=device)  # by row of the batch
        for position in range(limit):
            token, logprob = draw(logits, sampling, uniforms(keys, position))
            token = torch.where(running, token, self.pad_id)
            active = live[running]
            ids[active, position] = token[running]
            logprobs[active, position] = logprob[running].float()
            total[active] += 1
            ended = running & torch.isin(token, self.stop_ids)
            stopped[live[ended]] = True
            running = running & ~ended
            alive = int(running.sum())
            if alive == 0 or position == limit - 1:
                break
            if alive < COMPACT_BELOW * len(live):
                keep = running.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                token, live, lengths, mask = token[keep], live[keep], lengths[keep], mask[keep]
                keys, running = keys[keep.cpu().numpy()], running[keep]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = network.next_logits(
                token[:, None], cache, (lengths + position)[:, None], mask if is_ragged else None
            )
        return _Drawn(ids=ids.cpu(), logprobs=logprobs.cpu(), lengths=total.cpu(), stopped=stopped.cpu())

    def _prefill(self, requests: list[SampleRequest], counts: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Each prompt once, left-padded; then the cache, the next-token logits and the mask repeated per completion."""
        width = max(len(r.prompt_ids) for r in requests)
        ids = np.full((len(requests), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(requests), width), dtype=bool)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = request.prompt_ids
            mask[row, width - len(request.prompt_ids) :] = True
        device = self.network.device
        mask_tensor = torch.from_numpy(mask).to(device)
        positions = (mask_tensor.long().cumsum(dim=1) - 1).clamp(min=0)
        cache = self.network.new_cache()
        logits = self.network.next_logits(
            torch.from_numpy(ids).to(device), cache, positions, None if mask.all() else mask_tensor
        )
        repeat = torch.repeat_interleave(torch.arange(len(requests), device=device), counts)
        cache.batch_select_indices(repeat)
        return cache, logits[repeat], mask_tensor[repeat]
