"""Draws images code by code, all rows in step; with guidance each row runs with its prompt and without."""

from collections.abc import Sequence
from typing import Literal

import torch

from gspo.policies.image_network import ImageNetwork
from gspo.policies.image_tokens import Scoring, guided
from gspo.samplers.base import SampleRequest
from gspo.samplers.streams import stream_keys, uniforms
from gspo.sampling import draw
from gspo.types import Completion


class ImageSampler:
    """`codes` per image; `max_rows` bounds the rows decoded at once, unconditional ones counted.

    `scores` is "guided" where what trains is another distribution than what is drawn from.
    """

    def __init__(
        self, network: ImageNetwork, *, codes: int, guidance: float, scoring: Scoring, max_rows: int = 512
    ) -> None:
        self.network, self.codes, self.guidance, self.max_rows = network, codes, guidance, max_rows
        is_exact = scoring == "guided" or guidance == 1
        self.scores: Literal["exact", "guided"] = "exact" if is_exact else "guided"
        self.version = 0

    def sync_weights(self, policy: object, version: int) -> None:
        """The weights are the policy's own: only the version moves."""
        self.version = version

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        """Completions of each request, in the order of `requests`; rows are batched in that order."""
        rows = [(number, stream) for number, request in enumerate(requests) for stream in request.streams()]
        at_once = max(1, self.max_rows // (1 if self.guidance == 1 else 2))
        found: list[list[Completion]] = [[] for _ in requests]
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            drawn = self._drawn([requests[number] for number, _ in part], [stream for _, stream in part])
            for (number, _), completion in zip(part, drawn, strict=True):
                found[number].append(completion)
        return found

    @torch.no_grad()
    def _drawn(self, requests: Sequence[SampleRequest], streams: Sequence[tuple[int, ...]]) -> list[Completion]:
        """One image for each row."""
        sampling, keys = requests[0].sampling, stream_keys(streams)
        prompts = [request.prompt_ids for request in requests]
        drawing = self.network.start(prompts)
        null = [self.network.codes.unconditional(prompt) for prompt in prompts]
        blind = None if self.guidance == 1 else self.network.start(null)
        codes, logprobs = [], []
        for position in range(self.codes):
            logits = drawing.logits if blind is None else guided(drawing.logits, blind.logits, self.guidance)
            code, logprob = draw(logits, sampling, uniforms(keys, position))
            codes.append(code)
            logprobs.append(logprob)
            if position + 1 < self.codes:
                drawing.advance(code)
                if blind is not None:
                    blind.advance(code)
        table, scores = torch.stack(codes, dim=1).tolist(), torch.stack(logprobs, dim=1).float().tolist()
        return [
            Completion(ids=tuple(ids), logprobs=tuple(own), policy_version=self.version, finish_reason="stop")
            for ids, own in zip(table, scores, strict=True)
        ]
