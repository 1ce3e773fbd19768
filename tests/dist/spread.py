"""What one process and two ranks do alike: each check gives tensors by name, to be compared."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_models import network, ragged_step
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from gspo.corrections import OPSM, TokenTIS
from gspo.dist import shards, split_layers
from gspo.dist.building import policy_of, reference_of
from gspo.dist.config import RanksConfig
from gspo.dist.ranks import Ranks
from gspo.dist.shards import Sharded, place
from gspo.functional import as_terms
from gspo.models import LoRA, with_lora
from gspo.objectives import AGRO, DAPO, DPO, EGSW, GRPO, GSPO, REBEL, EntropyBonus, ReferenceKL
from gspo.objectives.corrected import Corrected
from gspo.policies import likelihood
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.master import AdamW
from gspo.policies.network import Network
from gspo.sampling import Sampling

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy trained for some updates, clipping active."""

    terms: Any = field(default_factory=GSPO)
    layout: str = "padded"
    family: str = "qwen3-tied"
    dtype: torch.dtype = torch.float64
    sharding: str = "full"
    tensor_parallel: int = 1
    context_parallel: int = 1
    rank: int = 0
    checkpoints: bool = False
    updates: int = 2
    groups: int = 4
    budget: int = 40
    routing: str = "free"
    balance: float = 0.0
    sampling: Sampling = field(default_factory=Sampling)
    is_large: bool = False
    """Log-probs are made as for a large vocabulary."""

    def __call__(self, ranks: Ranks) -> Tensors:
        with patch.object(likelihood, "SMALL_ELEMENTS", 0 if self.is_large else likelihood.SMALL_ELEMENTS):
            return self._updated(ranks)

    def _updated(self, ranks: Ranks) -> Tensors:
        net = network(self.family, dtype=self.dtype)
        model = with_lora(net.model, LoRA(rank=self.rank), 0) if self.rank else net.model
        if self.rank:  # adapters start at 0: away from there, so that all of them have gradients
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.data = p.data.to(self.dtype) + 0.02
        net = Network(model, checkpoints_activations=self.checkpoints)
        terms = as_terms(self.terms)
        scorer = TokenScorer(
            network=net,
            scoring=self.sampling,
            micro_batch_tokens=self.budget,
            layout=self.layout,
            keeps_groups_whole=any(term.traits.keeps_groups_whole for term in terms),
            routing=self.routing,
            balance_coef=self.balance,
        )
        settings = RanksConfig(
            sharding=self.sharding, tensor_parallel=self.tensor_parallel, context_parallel=self.context_parallel
        )
        optimizer = AdamW(lr=1e-3, max_grad_norm=1e-3, weight_decay=0.1)
        policy = policy_of(scorer, optimizer, ranks, settings, CPU)
        if self.rank:
            frozen = replace(policy.scorer, without_adapters=True)
        else:
            model = network(self.family, dtype=self.dtype, seed=1).model.requires_grad_(False)
            frozen = scorer.with_model(model)
        reference = reference_of(frozen, policy, settings)
        found: Tensors = {}
        for number in range(self.updates):
            step = ragged_step(number, self.groups, self.dtype)
            step = replace(step, rewards=step.advantage, sampler_logprobs=step.old_logprobs)
            before = policy.logprobs(step)
            step = replace(
                step, old_logprobs=before.logprobs + 1e-3, reference_logprobs=reference.logprobs(step).logprobs
            )
            if self.routing == "R2":
                step = replace(step, payload=step.payload.with_replay(before.replay))
            weights = [term.weights(step, term.counts(step)) for term in terms]
            result = policy.forward_backward(step, weights, terms)
            found |= {
                f"{number} reference": step.reference_logprobs,
                f"{number} old": before.logprobs,
                f"{number} entropy": result.entropy,
                f"{number} logprobs": result.logprobs,
                f"{number} loss": torch.tensor(result.loss),
                f"{number} pull": result.unit_gradient,
                f"{number} log-ratio": result.explanation.log_ratio,
                f"{number} bound": result.explanation.bound,
                f"{number} norm": torch.tensor(policy.optim_step(1e-3)),
            }
            found |= {f"{number} {name}": whole(value) for name, value in policy.weights.state().items()}
        return found


def whole(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


CASES: dict[str, Callable[[Ranks], Tensors]] = {
    "gspo": Case(),
    "corrected": Case(terms=Corrected(base=GSPO(), corrections=(TokenTIS(), OPSM(delta=1e-4)))),
    "grpo, replicated": Case(terms=GRPO(), sharding="none"),
    "dapo, layers kept": Case(terms=DAPO(), sharding="gradients"),
    "egsw": Case(terms=EGSW(base=DAPO())),
    "rebel": Case(terms=REBEL()),
    "dpo": Case(terms=DPO()),
    "agro": Case(terms=AGRO()),
    "terms": Case(terms=(GSPO(), ReferenceKL(coef=0.1), EntropyBonus(coef=0.1))),
    "packed": Case(layout="packed"),
    "shared": Case(layout="shared_prefix", terms=GRPO()),
    "auto, untied": Case(layout="auto", family="qwen3-untied"),
    "lora": Case(rank=2),
    "lora, replicated": Case(rank=2, sharding="none"),
    "activations": Case(checkpoints=True, layout="shared_prefix"),
    "a rank without rows": Case(groups=1),
    "many micro-batches": Case(budget=1, groups=5),
    "experts": Case(family="qwen3-moe", balance=0.1),
    "experts, R2": Case(family="qwen3-moe", routing="R2", balance=0.1),
    "bf16": Case(dtype=torch.bfloat16),
}

Split = partial(Case, tensor_parallel=2)
SPLIT: dict[str, Callable[[Ranks], Tensors]] = {
    "split, ends whole": Split(),
    "split, tied": Split(family="qwen3-even-tied"),
    "split, large": Split(family="qwen3-even-tied", is_large=True),
    "split, large, untied": Split(family="qwen3-even-untied", is_large=True, layout="packed", terms=DPO()),
    "split, layers kept": Split(family="llama", sharding="gradients", layout="shared_prefix", terms=GRPO()),
    "split, gathered": Split(family="olmo2"),
    "split, activations": Split(checkpoints=True, layout="auto", budget=1, groups=5, is_large=True),
    "split, lora": Split(family="qwen3-even-untied", rank=2, is_large=True),
    "split, terms": Split(
        family="qwen3-even-tied", is_large=True, terms=(GSPO(), ReferenceKL(coef=0.1), EntropyBonus(coef=0.1))
    ),
    "split, truncated": Split(family="qwen3-even-tied", sampling=Sampling(top_p=0.9, temperature=0.8)),
    "split, bf16": Split(family="qwen3-even-tied", dtype=torch.bfloat16),
}
"""With matrices in two parts."""
CASES |= SPLIT
Tokens = partial(Case, context_parallel=2)
TOKENS: dict[str, Callable[[Ranks], Tensors]] = {
    "tokens": Tokens(),
    "tokens, packed": Tokens(family="qwen3-untied", layout="packed", terms=DPO(), is_large=True),
    "tokens, shared": Tokens(family="llama", sharding="gradients", layout="shared_prefix", terms=GRPO()),
    "tokens, sliding": Tokens(family="mistral-sliding"),
    "tokens, activations": Tokens(checkpoints=True, layout="auto", budget=1, groups=5, is_large=True),
    "tokens, lora": Tokens(rank=2, is_large=True),
    "tokens, terms": Tokens(terms=(GSPO(), ReferenceKL(coef=0.1), EntropyBonus(coef=0.1))),
    "tokens, experts": Tokens(family="qwen3-moe", balance=0.1, layout="packed"),
    "tokens, experts, R2": Tokens(family="qwen3-moe", routing="R2", balance=0.1, checkpoints=True),
    "tokens, bf16": Tokens(dtype=torch.bfloat16, layout="packed"),
}
"""With the tokens of a row in two parts."""
CASES |= TOKENS
FOUR = {"both": Split(context_parallel=2, family="qwen3-even-wide", is_large=True, layout="shared_prefix")}
"""For four ranks."""


def placed(ranks: Ranks, **settings: int) -> tuple[Network, Sharded]:
    net = network("qwen3-even-untied")
    return net, place(net, ranks, RanksConfig(**settings), CPU)


def held(ranks: Ranks) -> list[float]:
    """The share of the weights that each rank keeps between passes."""
    net, _ = placed(ranks, tensor_parallel=2)
    parts = [(p.to_local().numel(), p.numel()) for p in net.model.parameters()]
    return ranks.everyone(sum(own for own, _ in parts) / sum(all_ for _, all_ in parts))


@torch.no_grad()
def ran(ranks: Ranks) -> list[tuple[int, tuple]]:
    """How many tokens each rank's layers run of a row of 13, and the hidden states that all of them then have."""
    net, _ = placed(ranks, context_parallel=2)
    seen: list[int] = []
    first = next(m for m in net.body.modules() if isinstance(m, GradientCheckpointingLayer))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    states = net.hidden(torch.arange(13)[None])
    return ranks.everyone((seen, tuple(states.shape)))


def travelled(ranks: Ranks) -> list[int]:
    """How often the gradient of an input is summed over ranks: for each layer's attention, its mlp, and the head."""
    net, _ = placed(ranks, tensor_parallel=2)
    counted, own = [], split_layers._Alike.backward
    with patch.object(split_layers._Alike, "backward", lambda *given: counted.append(1) or own(*given)):
        states = net.hidden(torch.arange(13)[None])
        net.head(states[0]).sum().backward()
    return ranks.everyone(len(counted))


@torch.no_grad()
def gathered(ranks: Ranks, **settings: int) -> list[bool]:
    """Whether each rank, with the weights whole, answers to the bit as one process does, alone: no collective is left
    in the layers; and whether it then answers in parts again."""
    net, placement = placed(ranks, **settings)
    own, ids = network("qwen3-even-untied"), torch.arange(12)[None]

    def answer(of: Network) -> torch.Tensor:
        states = of.hidden(ids)[0]
        return of.head(states)

    with placement.whole():
        is_equal = ranks.rank != 0 or torch.equal(answer(net), answer(own))
    is_close = torch.allclose(answer(net), answer(own), rtol=1e-12, atol=1e-12)
    return ranks.everyone(is_equal and is_close)


def doubted(ranks: Ranks) -> list[str]:
    """What is said of a network that answers otherwise than it did before it was split."""
    said = iter((0.0, 1.0))
    with patch.object(shards, "answers", lambda net: torch.full((1,), next(said))), pytest.raises(ValueError) as found:
        placed(ranks, tensor_parallel=2)
    return ranks.everyone(str(found.value))


CHECKS: dict[str, Callable[[Ranks], list]] = {
    "held": held,
    "ran": ran,
    "travelled": travelled,
    "gathered": partial(gathered, tensor_parallel=2),
    "gathered tokens": partial(gathered, context_parallel=2),
    "doubted": doubted,
}
