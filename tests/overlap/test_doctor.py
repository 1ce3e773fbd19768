"""Six planted faults, and the doctor names each; healthy samplers have none."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gspo.cli.verbs import doctor as doctor_verb
from gspo.doctor import Doctor, Finding
from gspo.models import tiny_model, tiny_shape
from gspo.samplers.base import SampleRequest
from gspo.samplers.copied import Copied, copy_of
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training.batch import assemble
from gspo.training.parts import Given, Parts, build
from gspo.training.run import start
from gspo.types import Completion, Sample

LARGE = ("sampling.max_completion_tokens", 8)


def parts_of(*overrides: tuple, given: Given = Given()) -> Parts:
    parts = build(settings(Path("nowhere"), LARGE, *overrides), given, report=lambda line: None)
    with torch.no_grad():  # sharper than at random, so that wrong weights are told from right ones
        for parameter in parts.loaded.model.parameters():
            parameter.mul_(1.5 if parameter.dim() > 1 else 1.0)
    return parts


def sampler_on(parts: Parts, model: torch.nn.Module) -> InProcess:
    network = type(parts.policy.network)(model)
    return InProcess(network, parts.renderer.stop_ids, parts.renderer.pad_id)


def with_sampler(parts: Parts, sampler: Any) -> Parts:
    return replace(parts, sampler=sampler, source=replace(parts.source, sampler=sampler))


def copied(parts: Parts, dtype: torch.dtype | None = None) -> Copied:
    model = copy_of(parts.loaded.model, dtype)
    return Copied(sampler_on(parts, model), model)


def causes(parts: Parts) -> dict[str, Finding]:
    _, findings = Doctor(parts, prompts=4).examine()
    return {finding.cause: finding for finding in findings}


def named(parts: Parts) -> list[str]:
    return [cause for cause, finding in causes(parts).items() if finding.verdict == "cause"]


class Wrapped:
    """A sampler with one fault."""

    scores = "exact"

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def sync_weights(self, policy: Any, version: int) -> None:
        self.sampler.sync_weights(policy, version)

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        return self.sampler.sample(requests)


class Stale(Wrapped):
    """Takes weights once."""

    taken = False

    def sync_weights(self, policy: Any, version: int) -> None:
        if not self.taken:
            self.sampler.sync_weights(policy, version)
        self.taken = True


class CachedPrompts(Wrapped):
    """Reads a prompt once: its keys and values stay those of the weights that read it first."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(copied(parts))
        self.parts = parts
        self.seen: dict[tuple[int, ...], torch.nn.Module] = {}

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        model = self.sampler.copied
        for request in requests:
            if request.prompt_ids not in self.seen:
                self.seen[request.prompt_ids] = copy.deepcopy(model)
        drawn = self.sampler.sample(requests)  # the tokens; their log-probs as they are behind the cached prompt
        return [
            [self._scored(request, completion, model) for completion in group]
            for request, group in zip(requests, drawn, strict=True)
        ]

    def _scored(self, request: SampleRequest, completion: Completion, model: torch.nn.Module) -> Completion:
        read = self.seen[request.prompt_ids](torch.tensor([request.prompt_ids]), use_cache=True)
        rest = model(torch.tensor([completion.ids]), past_key_values=read.past_key_values)
        logits = torch.cat([read.logits[0, -1:], rest.logits[0, :-1]]).log_softmax(dim=-1)
        scores = logits.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        return replace(completion, logprobs=tuple(scores.tolist()))


class Unprocessed(Wrapped):
    """Draws under top-p and gives log-probs of the model's own distribution."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(copied(parts))
        self.parts = parts

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        own = replace(self.parts.policy.scorer, scoring=Sampling())
        drawn = zip(requests, super().sample(requests), strict=True)
        return [[self._scored(own, request, completion) for completion in group] for request, group in drawn]

    def _scored(self, scorer: Any, request: SampleRequest, completion: Completion) -> Completion:
        sample = Sample(
            group_id=0, rollout_id=0, index=0, prompt_ids=request.prompt_ids, completion_ids=completion.ids,
            sampler_logprobs=completion.logprobs, advantage=0.0, reward=0.0, is_trained=True,
        )  # fmt: skip
        scores = scorer.logprobs(assemble([sample], torch.device("cpu"))).logprobs[0]
        return replace(completion, logprobs=tuple(scores.tolist()))


class ReadAgain(Wrapped):
    """Gives the ids that a completion's text is encoded to, beside the log-probs of those that were drawn."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(copied(parts))
        self.renderer = parts.renderer

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        return [[self._read(completion) for completion in group] for group in super().sample(requests)]

    def _read(self, completion: Completion) -> Completion:
        ids = completion.ids
        end = ids[-1:] if ids[-1] in self.renderer.stop_ids else ()
        again = (*self.renderer.encode(self.renderer.text(ids), special=False), *end)
        scores = (*completion.logprobs, *(0.0,) * len(again))[: len(again)]
        return replace(completion, ids=again, logprobs=scores)


class OtherExperts(Wrapped):
    """Its gates are a little off, as where they are computed in another precision; records what they chose."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(copied(parts))
        self.parts = parts

    def sync_weights(self, policy: Any, version: int) -> None:
        super().sync_weights(policy, version)
        make = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.sampler.copied.named_parameters():
                if name.endswith("mlp.gate.weight"):
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=make))


def two_ways() -> Given:
    """A tiny model whose tokenizer has pairs of digits as well as digits: texts have several ways of being written."""
    alphabet = [*"0123456789+-*= ", *(f"{i:02d}" for i in range(100))]
    vocabulary = {"<pad>": 0, "<eos>": 1} | {text: i + 2 for i, text in enumerate(alphabet)}
    merges = [(a, b) for a in "0123456789" for b in "0123456789"]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    config = settings(Path("nowhere")).tiny
    shape = tiny_shape(config, fast)
    model = type(tiny_model(config, 0).model)(shape)
    return Given(model=model, tokenizer=fast)


def planted_stale() -> Parts:
    parts = parts_of()
    return with_sampler(parts, Stale(copied(parts)))


def planted_cache() -> Parts:
    parts = parts_of()
    return with_sampler(parts, CachedPrompts(parts))


def planted_support() -> Parts:
    parts = parts_of(("sampling.top_p", 0.7))
    return with_sampler(parts, Unprocessed(parts))


def planted_tokens() -> Parts:
    parts = parts_of(given=two_ways())
    return with_sampler(parts, ReadAgain(parts))


def planted_experts() -> Parts:
    parts = parts_of(("tiny.experts", 8))
    return with_sampler(parts, OtherExperts(parts))


def planted_dtype() -> Parts:
    parts = parts_of()
    return with_sampler(parts, copied(parts, torch.bfloat16))


PLANTED: dict[str, Callable[[], Parts]] = {
    "stale weights": planted_stale,
    "stale prefix cache": planted_cache,
    "sampling support": planted_support,
    "tokens": planted_tokens,
    "expert routing": planted_experts,
    "precision": planted_dtype,
}


@pytest.mark.parametrize("cause", PLANTED)
def test_a_planted_fault_is_named_and_no_other(cause: str) -> None:
    assert named(PLANTED[cause]()) == [cause]


@pytest.mark.parametrize(
    "parts",
    [
        lambda: parts_of(),
        lambda: (parts := parts_of()) and with_sampler(parts, copied(parts)),
        lambda: parts_of(("sampling.top_p", 0.7), ("sampling.temperature", 0.8)),
        lambda: parts_of(given=two_ways()),
        lambda: parts_of(("tiny.experts", 8)),
    ],
    ids=["in process", "on a copy", "top-p", "several ways of writing", "experts"],
)
def test_a_healthy_sampler_has_no_fault(parts: Callable[[], Parts]) -> None:
    found = causes(parts())
    assert {cause: f.verdict for cause, f in found.items() if f.verdict != "fine"} == {}


def test_the_weights_are_as_they_were() -> None:
    parts = parts_of()
    before = {name: p.clone() for name, p in parts.loaded.model.named_parameters()}
    Doctor(parts, prompts=2).examine()
    assert all(torch.equal(p, before[name]) for name, p in parts.loaded.model.named_parameters())


def test_the_verb_reads_runs_and_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(settings(tmp_path / "run", ("steps", 2)))
    assert doctor_verb([str(run.folder), "--prompts", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "weights of step 2; the run logged a gap of" in said and "old_logprobs" in said
    assert all(cause in said for cause in PLANTED)
    with pytest.raises(ValueError, match="for language models that answer in one turn"):
        doctor_verb(["digits-grpo-rm", "--policy.uniformity", "0"])
