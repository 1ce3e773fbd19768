"""Decoders: token ids in, next-token logits out, for a changing set of rows.

`SharedPrompts` keeps keys and values itself; `CopiedCache` lets transformers keep them, for models whose layers are
more than causal attention. Both are a function of what they are told, in the order in which they are told it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gspo.policies.network import Network
from gspo.samplers.kv_store import Block, closed_up
from gspo.samplers.shared_attention import Decode, Prefill, Seats

PREFILL_TOKENS = 8192
"""Prompts are prefilled in passes of about this many tokens, which bounds the activations."""


class Decoder(Protocol):
    """Rows are numbered 0, 1, ...: `admit` adds at the end, `advance` feeds one token to each, `keep` leaves some."""

    admits_midway: bool
    """Whether rows can join while others are under way."""
    prompt_routes: dict[int, np.ndarray]
    """Mixture of experts: by the number of each prompt that `admit` prefilled last, [T,layers,k]; else empty."""
    token_routes: np.ndarray | None
    """[R,layers,k] of the tokens that `advance` fed last."""

    def admit(self, rows: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
        """(prompt's number, prompt's ids) of each new row -> their next-token logits [N,V].

        Rows of one prompt follow each other, in one call or in several on end.
        """
        ...

    def advance(self, token: Tensor) -> Tensor:
        """[R] -> [R,V] next-token logits."""
        ...

    def keep(self, order: np.ndarray) -> None:
        """Row `order[i]` becomes row i; the others leave."""
        ...


class SharedPrompts:
    """Each prompt is prefilled once and its keys and values are kept once; see `shared_attention`.

    `longest_prompt` and `limit` (completion tokens) bound what will be asked for. A row that is fed past `limit`,
    because it has ended and not left yet, overwrites its last token: its logits mean nothing.
    """

    admits_midway = True

    def __init__(self, network: Network, longest_prompt: int, limit: int) -> None:
        self.prompt_routes: dict[int, np.ndarray] = {}
        self.token_routes: np.ndarray | None = None
        self.network = network
        self.limit = limit
        self.longest_prompt = longest_prompt
        self.prompts, self.own = Block(), Block()
        self.numbers: list[int] = []
        """The prompt behind each slot of `prompts`."""
        self.slot_lengths = np.zeros(0, dtype=np.int64)
        self.slots = np.zeros(0, dtype=np.int64)
        """[R]: each row's slot."""
        self.used = np.zeros(0, dtype=np.int64)
        """[R]: tokens in each row of `own`."""
        self.last = (-1, torch.empty(0))
        """The prompt admitted last and its next-token logits: more of its rows may come."""
        self._seats: Seats | None = None

    @torch.no_grad()
    def admit(self, rows: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
        new = {number: ids for number, ids in rows if number != self.last[0]}
        slot_of = {number: slot for slot, number in enumerate([*self.numbers, *new])}
        logits = {} if self.last[0] < 0 else {self.last[0]: self.last[1]}
        slots_needed = len(self.numbers) + len(new)
        self.prompt_routes = {}
        for some in _passes(new):
            self._prefill(some, logits, slots_needed)
        slots = np.array([slot_of[number] for number, _ in rows])
        self.slots = np.concatenate([self.slots, slots])
        self.used = np.concatenate([self.used, np.zeros_like(slots)])
        self.own.reserve(len(self.slots), 1, self.limit, like=self.prompts.buffers)
        self._seats = None
        last = rows[-1][0]
        self.last = (last, logits[last])
        order = list(logits)
        index = torch.tensor([order.index(number) for number, _ in rows], device=self.network.device)
        return torch.stack(list(logits.values()))[index]

    def _prefill(self, prompts: dict[int, tuple[int, ...]], logits: dict[int, Tensor], slots: int) -> None:
        device = self.network.device
        lengths = np.array([len(ids) for ids in prompts.values()])
        ids = np.concatenate([np.array(ids, dtype=np.int64) for ids in prompts.values()])
        positions = np.concatenate([np.arange(length) for length in lengths])
        attention, routes = Prefill(lengths, device), self.network.new_pass()
        hidden = self.network.hidden(
            torch.from_numpy(ids)[None].to(device),
            torch.from_numpy(positions)[None].to(device),
            attention=attention,
            routes=routes,
        )[0]
        if routes is not None:
            parts = np.split(routes.routes().cpu().numpy(), lengths.cumsum()[:-1])
            self.prompt_routes |= dict(zip(prompts, parts, strict=True))
        ends = torch.from_numpy(lengths.cumsum() - 1).to(device)
        logits |= dict(zip(prompts, self.network.head(hidden[ends]), strict=True))
        first = len(self.numbers)
        self.prompts.reserve(slots, int(lengths.max()), self.longest_prompt, like=attention.kept)
        self.prompts.put(first, attention.kept)
        self.numbers += prompts
        self.slot_lengths = np.concatenate([self.slot_lengths, lengths])

    @torch.no_grad()
    def advance(self, token: Tensor) -> Tensor:
        before = np.minimum(self.used, self.limit - 1)
        lengths = self.slot_lengths[self.slots]
        if self._seats is None:
            self._seats = Seats(slots=self.slots, device=token.device)
        self.own.reserve(len(self.slots), int(before.max()) + 1, self.limit, like=self.own.buffers)
        attention = Decode(own=self.own, before=before, prompts=self.prompts, seats=self._seats, lengths=lengths)
        positions = torch.from_numpy(before + lengths).to(token.device)
        routes = self.network.new_pass()
        hidden = self.network.hidden(token[:, None], positions[:, None], attention=attention, routes=routes)
        self.token_routes = None if routes is None else routes.routes().cpu().numpy()
        self.used = before + 1
        return self.network.head(hidden[:, -1])

    def keep(self, order: np.ndarray) -> None:
        self.own.keep(order)
        self.slots, self.used = self.slots[order], self.used[order]
        is_needed = np.isin(np.arange(len(self.numbers)), self.slots)
        is_needed |= np.array(self.numbers) == self.last[0]
        slots = closed_up(is_needed)
        self.prompts.keep(slots)
        self.numbers = [self.numbers[slot] for slot in slots]
        self.slot_lengths = self.slot_lengths[slots]
        moved_to = np.empty(len(is_needed), dtype=np.int64)
        moved_to[slots] = np.arange(len(slots))
        self.slots = moved_to[self.slots]
        self._seats = None


def _passes(prompts: dict[int, tuple[int, ...]]) -> list[dict[int, tuple[int, ...]]]:
    """In order, about `PREFILL_TOKENS` each, padding of attention included."""
    out: list[dict[int, tuple[int, ...]]] = []
    longest = 0
    for number, ids in prompts.items():
        longest = max(longest, len(ids))
        if not out or (len(out[-1]) + 1) * longest > PREFILL_TOKENS:
            out.append({})
            longest = len(ids)
        out[-1][number] = ids
    return out


class CopiedCache:
    """transformers' own cache behind a padded batch. It copies itself for every token: a decoder of last resort."""

    admits_midway = False

    def __init__(self, network: Network, pad_id: int) -> None:
        self.prompt_routes: dict[int, np.ndarray] = {}
        self.token_routes: np.ndarray | None = None
        self.network = network
        self.pad_id = pad_id
        self.cache: Any = None
        self.mask = torch.empty(0)
        """[R, past]: real tokens."""
        self.lengths = torch.empty(0)
        """[R]: real tokens in the past."""
        self.is_ragged = False

    @torch.no_grad()
    def admit(self, rows: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
        """Each prompt once, left-padded; then the cache, the logits and the mask repeated per row."""
        prompts = dict(rows)
        width = max(len(ids) for ids in prompts.values())
        ids = np.full((len(prompts), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=bool)
        for row, prompt in enumerate(prompts.values()):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = True
        device = self.network.device
        mask_tensor = torch.from_numpy(mask).to(device)
        positions = (mask_tensor.long().cumsum(dim=1) - 1).clamp(min=0)
        self.cache, self.is_ragged = self.network.new_cache(), not mask.all()
        routes = self.network.new_pass()
        logits = self.network.next_logits(
            torch.from_numpy(ids).to(device), self.cache, positions, mask_tensor if self.is_ragged else None, routes
        )
        if routes is not None:
            found = routes.routes().cpu().numpy().reshape(*mask.shape, len(routes.own), -1)
            self.prompt_routes = {number: found[i][mask[i]] for i, number in enumerate(prompts)}
        order = list(prompts)
        repeat = torch.tensor([order.index(number) for number, _ in rows], device=device)
        self.cache.batch_select_indices(repeat)
        self.mask = mask_tensor[repeat]
        self.lengths = self.mask.sum(dim=1)
        return logits[repeat]

    @torch.no_grad()
    def advance(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        mask = self.mask if self.is_ragged else None
        routes = self.network.new_pass()
        logits = self.network.next_logits(token[:, None], self.cache, self.lengths[:, None], mask, routes)
        self.token_routes = None if routes is None else routes.routes().cpu().numpy()
        self.lengths = self.lengths + 1
        return logits

    def keep(self, order: np.ndarray) -> None:
        index = torch.from_numpy(order).to(self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.lengths = self.mask[index], self.lengths[index]


@torch.no_grad()
def can_share_prompts(network: Network) -> bool:
    """Whether `SharedPrompts` says what the model says: attention may be replaced, and so may the cache.

    Whatever else an attention may have (keys shared between layers) shows as other logits for a few tokens.
    """
    config = network.config
    if not getattr(network.body, "_supports_attention_backend", False) or network.refusal:
        return False
    ids = [i * 7 % network.vocabulary for i in range(8)]
    decoder = SharedPrompts(network, len(ids), 2)
    decoder.admit([(0, tuple(ids[:-1]))])
    if len(decoder.prompts.buffers) != 2 * config.num_hidden_layers:
        return False
    ours = decoder.advance(torch.tensor(ids[-1:], device=network.device)).float()
    own = network.head(network.hidden(torch.tensor([ids], device=network.device))[:, -1]).float()
    tolerance = 1e-3 if network.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(own, ours, atol=tolerance * max(1.0, own.abs().max().item()))
