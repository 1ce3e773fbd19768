"""A causal language model as a policy: rows laid out, micro-batches by token budget, chunked likelihoods."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gspo.policies.layouts import Layout, LayoutName, lay_out
from gspo.policies.likelihood import token_logprobs
from gspo.policies.micro_batches import balanced, blocks_of_rows, by_width, repeated_tokens, shared_tokens
from gspo.policies.network import Network
from gspo.policies.payload import Payload
from gspo.policies.routing import Balance, Pass, Routing, by_sequence, expert_shares, laid_out
from gspo.policies.trained import scored
from gspo.sampling import Sampling
from gspo.types import Scores, Step


@dataclass(frozen=True, kw_only=True)
class TokenScorer:
    """Scores completions under a network. `scoring` is the distribution that completions are drawn from.

    With `without_adapters` a peft network scores with its adapters switched off: the reference of a LoRA run.
    """

    network: Network
    scoring: Sampling
    micro_batch_tokens: int
    pad_id: int = 0
    layout: LayoutName = "auto"
    without_adapters: bool = False
    keeps_groups_whole: bool = False
    """Micro-batches hold whole groups, for objectives that compare the rows of one."""
    routing: Routing = "free"
    """Mixture of experts: whose choices a training pass repeats; see `gspo.policies.routing`."""
    balance_coef: float = 0.0
    """Weight of the load-balancing loss."""
    redraws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.layout in ("packed", "shared_prefix") and self.network.refusal:
            raise ValueError(
                f'layout = "{self.layout}" cannot be exact for {self.network.config.model_type}: '
                f'{self.network.refusal}; use layout = "padded" or "auto"'
            )
        if (self.routing != "free" or self.balance_coef) and self.network.routers is None:
            what = f'routing = "{self.routing}"' if self.routing != "free" else "balance_coef"
            raise ValueError(f"policy.{what} is for a mixture of experts: {self.network.no_routers}")

    @property
    def allowed_layout(self) -> LayoutName:
        """`auto` is padded rows where the network allows nothing else."""
        return "padded" if self.layout == "auto" and self.network.refusal else self.layout

    def logprobs(self, step: Step) -> Scores:
        """See `scored`. Under R2 the routers choose here, and it is these choices that training repeats."""
        scorer = self.choosing() if self.routing == "R2" else self
        with self.network.model.disable_adapter() if self.without_adapters else nullcontext():
            scores = scored(scorer, step)
        return replace(scores, replay=None) if self.routing == "R3" else scores

    def choosing(self) -> "TokenScorer":
        """Its routers choose for themselves, and nobody balances them."""
        return replace(self, routing="free", balance_coef=0.0)

    def with_model(self, model: nn.Module) -> "TokenScorer":
        return replace(self.choosing(), network=self.network.with_model(model))

    def imitating(self) -> "TokenScorer":
        return replace(self, scoring=Sampling(), routing="free")

    def counted(self, step: Step) -> Step:
        """For the load-balancing loss: the experts' shares, from the rows' routes, or from a pass that finds them."""
        if not self.balance_coef or step.payload.counted is not None:
            return step
        records = step.payload.replay
        if records is None or any(record is None for record in records):
            records = scored(self.choosing(), step).replay
        assert records is not None
        tokens = sum(record.shape[0] for record in records)
        balance = Balance(self.balance_coef, expert_shares(records), tokens)
        return replace(step, payload=replace(step.payload, counted=balance))

    def score(self, part: Step, entropy: str) -> Scores:
        payload: Payload = part.payload
        device = self.network.device
        with self.network.seeing(payload.prompt, payload.inputs) as prompts:
            layout = lay_out(self.allowed_layout, prompts, payload.completion, self.pad_id, device, self.network.shape)
            routes = self._routes(payload, layout)
            states = self.network.hidden(layout.ids, layout.positions, layout.attention, routes)
        row, unit = part.mask.nonzero(as_tuple=True)
        chosen = torch.tensor([payload.completion[r][u] for r, u in zip(row.tolist(), unit.tolist(), strict=True)])

        def of(own: slice) -> tuple[Tensor, Tensor]:
            # Completions that part behind a token are predicted by the same one: its logits are made once.
            places, position = layout.predicts[row[own], unit[own]].unique(return_inverse=True)
            return token_logprobs(
                self.network.head,
                states.flatten(0, 1)[places],
                chosen[own].to(device),
                self.scoring,
                entropy,
                vocabulary=self.network.vocabulary,
                position=position,
            )

        logprobs, entropies = self.network.by_units(len(chosen), of)
        blank = torch.zeros(part.mask.shape, dtype=logprobs.dtype, device=device)
        scores = Scores(
            logprobs=blank.index_put((row, unit), logprobs), entropy=blank.index_put((row, unit), entropies)
        )
        if routes is None:
            return scores
        return replace(
            scores,
            replay=by_sequence(routes.routes(), layout.where, routes.routers.num_experts),
            penalty=payload.counted.loss(routes, layout.where) if routes.keeps_probabilities else None,
        )

    def _routes(self, payload: Payload, layout: Layout) -> Pass | None:
        """What the routers of a mixture of experts ask in this pass."""
        routers = self.network.routers
        if routers is None:
            return None
        forced = None
        if self.routing != "free":
            known = payload.replay or (None,) * len(layout.where)
            records = [routers.checked(r, len(places)) for r, places in zip(known, layout.where, strict=True)]
            forced = laid_out(records, layout.where, layout.ids.numel(), layout.ids.device)
        keeps_probabilities = payload.counted is not None and torch.is_grad_enabled()
        return Pass(routers=routers, forced=forced, keeps_probabilities=keeps_probabilities)

    def micro_batches(self, step: Step) -> list[list[int]]:
        """Rows cut so that the tokens that go forward together stay in the budget (one block alone may exceed it).

        The rows of a group stay together where an objective asks for it, and those of a prompt where they share it.
        """
        payload: Payload = step.payload
        is_padded = self.allowed_layout == "padded"
        blocks = blocks_of_rows(self._block_keys(step))
        if is_padded:
            return by_width(blocks, payload.prompt, payload.completion, self.micro_batch_tokens)
        count = repeated_tokens if self.layout == "packed" else shared_tokens
        tokens = [count(payload.prompt, payload.completion, rows) for rows in blocks]
        return balanced(blocks, tokens, self.micro_batch_tokens)

    def _block_keys(self, step: Step) -> Sequence[Hashable]:
        """What must stay together, by row: a group, a prompt, or just the row."""
        if self.keeps_groups_whole:
            return step.group.tolist()
        is_shared = self.allowed_layout in ("auto", "shared_prefix")
        return step.payload.prompt if is_shared else range(len(step.group))
