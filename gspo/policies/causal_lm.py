"""A causal language model as a policy: rows laid out, micro-batches by token budget, chunked likelihoods."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo.functional import explain, total_loss
from gspo.objectives.base import UnitObjective
from gspo.policies.base import StepResult
from gspo.policies.layouts import LayoutName, lay_out
from gspo.policies.likelihood import token_logprobs
from gspo.policies.master import AdamW, MasterWeights
from gspo.policies.micro_batches import balanced, blocks_of_rows, by_width, repeated_tokens, shared_tokens
from gspo.policies.network import Network
from gspo.sampling import Sampling
from gspo.types import Explanation, Scores, Step


@dataclass(frozen=True)
class TokenPayload:
    """Prompt and completion ids of each row: what this policy and its sampler open."""

    prompt: tuple[tuple[int, ...], ...]
    completion: tuple[tuple[int, ...], ...]

    def __getitem__(self, rows: list[int]) -> "TokenPayload":
        return TokenPayload(tuple(self.prompt[i] for i in rows), tuple(self.completion[i] for i in rows))


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

    def __post_init__(self) -> None:
        if self.layout in ("packed", "shared_prefix") and self.network.refusal:
            raise ValueError(
                f'layout = "{self.layout}" cannot be exact for {self.network.config.model_type}: '
                f'{self.network.refusal}; use layout = "padded" or "auto"'
            )

    @property
    def allowed_layout(self) -> LayoutName:
        """`auto` is padded rows where the network allows nothing else."""
        return "padded" if self.layout == "auto" and self.network.refusal else self.layout

    @torch.no_grad()
    def logprobs(self, step: Step) -> Scores:
        """Log-probs and entropies [B,U] of the step's units, without gradient; 0 outside the mask.

        Rows are cut into the same micro-batches as in `CausalLM.forward_backward`, so that at equal weights the two
        agree to the bit.
        """
        batches = self.micro_batches(step)
        with self.network.model.disable_adapter() if self.without_adapters else nullcontext():
            parts = [self.score(step.rows(rows), "value") for rows in batches]
        back = _inverse(batches, step.mask.device)
        entropy = torch.cat([_entropy(part) for part in parts])[back]
        return Scores(logprobs=torch.cat([part.logprobs for part in parts])[back], entropy=entropy)

    def score(self, part: Step, entropy: str) -> Scores:
        payload: TokenPayload = part.payload
        device = self.network.device
        layout = lay_out(
            self.allowed_layout, payload.prompt, payload.completion, self.pad_id, device, self.network.shape
        )
        row, unit = part.mask.nonzero(as_tuple=True)
        chosen = torch.tensor([payload.completion[r][u] for r, u in zip(row.tolist(), unit.tolist(), strict=True)])
        states = self.network.hidden(layout.ids, layout.positions, layout.attention)
        # Completions that part behind a token are predicted by the same one: its logits are made once.
        places, position = layout.predicts[row, unit].unique(return_inverse=True)
        hidden = states.flatten(0, 1)[places]
        logprobs, entropies = token_logprobs(
            self.network.head,
            hidden,
            chosen.to(device),
            self.scoring,
            entropy,
            vocabulary=self.network.vocabulary,
            position=position,
        )
        blank = torch.zeros(part.mask.shape, dtype=logprobs.dtype, device=device)
        return Scores(logprobs=blank.index_put((row, unit), logprobs), entropy=blank.index_put((row, unit), entropies))

    def micro_batches(self, step: Step) -> list[list[int]]:
        """Rows cut so that the tokens that go forward together stay in the budget (one block alone may exceed it).

        The rows of a group stay together where an objective asks for it, and those of a prompt where they share it.
        """
        payload: TokenPayload = step.payload
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


class CausalLM:
    """Trains a `Network` with AdamW."""

    def __init__(self, scorer: TokenScorer, optimizer: AdamW) -> None:
        self.scorer = scorer
        self.network = scorer.network
        self.weights = MasterWeights(self.network.named_trainable(), optimizer)

    def logprobs(self, step: Step) -> Scores:
        """See `TokenScorer.logprobs`."""
        return self.scorer.logprobs(step)

    def forward_backward(self, step: Step, weight: Sequence[Tensor], terms: Sequence[UnitObjective]) -> StepResult:
        """Add the gradient of the step's loss; micro-batches add up because `weight` was made on the whole step.

        Only the given rows go through the network: a caller may leave out rows whose gradient is known to be 0.
        """
        if any(term.traits.keeps_groups_whole for term in terms) and not self.scorer.keeps_groups_whole:
            raise ValueError("an objective compares the rows of a group: build the scorer with keeps_groups_whole=True")
        entropy = "gradient" if any("entropy_gradient" in term.traits.needs for term in terms) else "value"
        batches = self.scorer.micro_batches(step)
        losses, scored, gradients, why = [], [], [], []
        for rows in batches:
            part = step.rows(rows)
            scores = self.scorer.score(part, entropy)
            loss = total_loss(terms, [w[rows] for w in weight], scores, part)
            scores.logprobs.retain_grad()
            loss.backward()
            losses.append(loss.item())
            scored.append((scores.logprobs.detach(), _entropy(scores).detach()))
            gradients.append(scores.logprobs.grad)
            why.append(explain(terms, scores, part))
        back = _inverse(batches, step.mask.device)
        merge = lambda parts: torch.cat(list(parts))[back].cpu()  # noqa: E731
        return StepResult(
            loss=sum(losses),
            logprobs=merge(logprobs for logprobs, _ in scored),
            entropy=merge(entropy for _, entropy in scored),
            unit_gradient=merge(gradients),
            explanation=Explanation(
                log_ratio=merge(e.log_ratio for e in why),
                bound=merge(e.bound for e in why),
                level=why[0].level,
                band=why[0].band,
            ),
        )

    def optim_step(self, lr: float) -> float:
        """One AdamW update; returns the gradient norm of the whole step before clipping."""
        return self.weights.step(lr)


def _inverse(batches: list[list[int]], device: torch.device) -> Tensor:
    """Positions that put the concatenated micro-batches back into the order of the step."""
    return torch.tensor([row for rows in batches for row in rows], device=device).argsort()


def _entropy(scores: Scores) -> Tensor:
    assert scores.entropy is not None
    return scores.entropy
