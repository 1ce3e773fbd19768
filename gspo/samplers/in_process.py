"""Sampling with the very weights that train: one prefill per prompt, shared by its group; finished rows leave, and
waiting ones take their places.

Completions are taken in the order (prompt id, turn, index), and who leaves or joins when follows from what was drawn:
the arithmetic is a function of weights and counters alone, so that the same state samples the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gspo.policies.network import Network
from gspo.policies.routing import Routes
from gspo.samplers.base import SampleRequest
from gspo.samplers.decoding import CopiedCache, Decoder, SharedPrompts, can_share_prompts
from gspo.samplers.kv_store import closed_up
from gspo.samplers.route_log import RouteLog
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import Sampling, draw
from gspo.types import Completion

LEAVE_TOGETHER = 8
"""Rows that have ended leave, and waiting ones join, when they are a share of 1 in this many: moving rows and
prefilling have a cost per event, feeding a row that has ended one per token."""


class InProcess:
    """Samples from a `Network`. `max_rows` bounds the completions decoded at once."""

    scores: ClassVar[Literal["exact"]] = "exact"

    def __init__(self, network: Network, stop_ids: Sequence[int], pad_id: int, max_rows: int = 512) -> None:
        if not stop_ids:
            raise ValueError("the sampler needs at least one stop token id; the tokenizer has no eos_token")
        self.network = network
        self.stop_ids = np.array(sorted(set(stop_ids)))
        self.pad_id = pad_id
        self.max_rows = max_rows
        self.version = 0
        self._shares_prompts = can_share_prompts(network)

    def sync_weights(self, policy: object, version: int) -> None:
        """The weights are the policy's own: only the version moves."""
        self.version = version

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """Completions of each request, in the order of `requests`."""
        results = dict(self.sample_each(requests))
        return [results[i] for i in range(len(requests))]

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        """(index in `requests`, its completions) as soon as a group has ended; what follows is sampled on demand.

        Requests of different `Sampling` are sampled one after the other.
        """
        settings = list(dict.fromkeys(request.sampling for request in requests))
        settings.sort(key=lambda s: min(_order(r) for r in requests if r.sampling == s))
        for sampling in settings:
            wave = [i for i, request in enumerate(requests) if request.sampling == sampling]
            wave.sort(key=lambda i: (_order(requests[i]), i))
            for position, completions in self._wave([requests[i] for i in wave], sampling):
                yield wave[position], completions

    def _wave(self, requests: list[SampleRequest], sampling: Sampling) -> Iterator[tuple[int, list[Completion]]]:
        limit = max(r.max_completion_tokens for r in requests)
        decoder: Decoder = (
            SharedPrompts(self.network, max(len(r.prompt_ids) for r in requests), limit)
            if self._shares_prompts
            else CopiedCache(self.network, self.pad_id)
        )
        prompts, inputs = [r.prompt_ids for r in requests], [r.inputs for r in requests]
        with self.network.seeing(prompts, inputs, is_trained=False) as read:
            own = [replace(request, prompt_ids=ids) for request, ids in zip(requests, read, strict=True)]
            wave = _Wave(own, sampling, decoder, self.stop_ids, self.max_rows)
            for number in wave.groups():
                rows = range(wave.first[number], wave.first[number] + requests[number].n)
                yield number, [self._completion(wave, row) for row in rows]

    def _completion(self, wave: "_Wave", row: int) -> Completion:
        length = wave.lengths[row]
        return Completion(
            ids=tuple(wave.ids[row, :length].tolist()),
            logprobs=tuple(wave.logprobs[row, :length].tolist()),
            policy_version=self.version,
            finish_reason="stop" if wave.is_stopped[row] else "length",
            replay=self._routes(wave, row),
        )

    def _routes(self, wave: "_Wave", row: int) -> Routes | None:
        """Where the tokens of a mixture of experts went."""
        routers = self.network.routers
        if routers is None:
            return None
        return Routes.of(wave.routes.of(row, wave.prompts[row][0], wave.lengths[row] - 1), routers.num_experts)


def _order(request: SampleRequest) -> tuple[int, ...]:
    return (request.prompt_id, request.seed, request.step, request.turn, *request.indices)


class _Wave:
    """Requests of one `Sampling` under way. Completions have numbers in their order of admission; those being decoded
    are the decoder's rows.
    """

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        sampling: Sampling,
        decoder: Decoder,
        stop_ids: np.ndarray,
        max_rows: int,
    ) -> None:
        self.sampling, self.decoder, self.stop_ids, self.max_rows = sampling, decoder, stop_ids, max_rows
        self.prompts = [(number, r.prompt_ids) for number, r in enumerate(requests) for _ in range(r.n)]
        self.keys = stream_keys([stream for r in requests for stream in r.streams()])
        self.unfinished = np.array([r.n for r in requests])
        self.first = np.cumsum(self.unfinished) - self.unfinished
        count, limit = len(self.prompts), max(r.max_completion_tokens for r in requests)
        self.limits = np.repeat([r.max_completion_tokens for r in requests], [r.n for r in requests])
        self.ids = np.zeros((count, limit), dtype=np.int64)
        self.logprobs = np.zeros((count, limit), dtype=np.float32)
        self.lengths = np.zeros(count, dtype=np.int64)
        self.is_stopped = np.zeros(count, dtype=bool)
        self.routes = RouteLog(count, limit)
        self.admitted = 0
        self.live = np.zeros(0, dtype=np.int64)
        """The completion of each row."""
        self.running = np.zeros(0, dtype=bool)
        """[R]: a row that has ended stays until enough others have."""

    def groups(self) -> Iterator[int]:
        """The numbers of requests, each when its last completion has ended."""
        yield from np.flatnonzero(self.unfinished == 0).tolist()
        logits = self._joined(None)
        while logits is not None:
            token, ended = self._drawn(logits)
            yield from self._ended_groups(ended)
            logits = self._joined(self._advanced(token))

    def _drawn(self, logits: Tensor) -> tuple[Tensor, np.ndarray]:
        """(token of each row, the completions that end with it)."""
        lengths = self.lengths[self.live]
        token, logprob = draw(logits, self.sampling, uniforms(self.keys[self.live], lengths))
        ids, position = token.cpu().numpy(), lengths[self.running]
        active = self.live[self.running]
        self.ids[active, position] = ids[self.running]
        self.logprobs[active, position] = logprob.float().cpu().numpy()[self.running]
        self.lengths[active] += 1
        stops = self.running & np.isin(ids, self.stop_ids)
        self.is_stopped[self.live[stops]] = True
        ends = stops | (self.running & (lengths + 1 == self.limits[self.live]))
        self.running = self.running & ~ends
        return token, self.live[ends]

    def _ended_groups(self, ended: np.ndarray) -> list[int]:
        if not len(ended):
            return []
        numbers = np.array([self.prompts[i][0] for i in ended])
        np.subtract.at(self.unfinished, numbers, 1)
        return [int(number) for number in np.unique(numbers) if not self.unfinished[number]]

    def _advanced(self, token: Tensor) -> Tensor | None:
        """Logits of the rows that go on, after those that have ended leave if they are enough."""
        going = int(self.running.sum())
        if len(self.live) - going >= max(1, len(self.live) // LEAVE_TOGETHER):
            order = closed_up(self.running)
            self.decoder.keep(order)
            self.live, self.running = self.live[order], self.running[order]
            token = token[torch.from_numpy(order).to(token.device)]
        if not going:
            return None
        logits = self.decoder.advance(token)
        self.routes.fed(self.live, self.lengths[self.live] - 1, self.decoder.token_routes)
        return logits

    def _joined(self, logits: Tensor | None) -> Tensor | None:
        """`logits` and behind them those of waiting completions, as many as there is room for."""
        until = min(len(self.prompts), self.admitted + self.max_rows - len(self.live))
        if until == self.admitted or (len(self.live) and not self.decoder.admits_midway):
            return logits
        new = self.decoder.admit(self.prompts[self.admitted : until])
        self.routes.prefilled(self.decoder.prompt_routes)
        self.live = np.concatenate([self.live, np.arange(self.admitted, until)])
        self.running = np.concatenate([self.running, np.ones(until - self.admitted, dtype=bool)])
        self.admitted = until
        return new if logits is None else torch.cat([logits, new])
