"""Why the sampler's log-probs are not the policy's: each possible cause tried out, one at a time, on real completions.

The gap is mean |log pi_sampler - log pi_policy| over sampled tokens. A cause is named where an experiment that takes it
away takes the gap away too; what is left over is precision. The causes are those that the field has met (2510.11370 for
experts, 2507.18071 section 5.4 for precision):

| cause | experiment |
|---|---|
| stale weights | the policy's weights are moved and brought to the sampler: do its log-probs follow? |
| stale prefix cache | the same with prompts that it has seen before the move, and with these read backwards |
| sampling support | the same tokens scored under temperature alone, and under the model's own distribution |
| tokens | completions drawn hot, as ids -> text -> ids: honest sampling writes most texts in another way |
| expert routing | the same tokens scored again through the experts that the sampler recorded |
| precision | the same tokens scored one row at a time, and by weights in the other precision |
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gspo.collectors.source import GroupSource
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.network import Network
from gspo.samplers.base import SampleRequest
from gspo.samplers.copied import copy_of
from gspo.samplers.in_process import InProcess
from gspo.sampling import Sampling
from gspo.training.batch import assemble, flatten
from gspo.training.experts import share_changed
from gspo.training.parts import Parts
from gspo.types import Completion, Group, Step

NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""What is added to all weights and taken away again, against their mean size: the least that moves log-probs enough.
More than that would make a deep model in half precision disagree with itself."""
MOVES = 10.0
"""Times the gap, and at least `LEAST_MOVE` nats, by which log-probs are to move."""
LEAST_MOVE = 0.1
FOLLOWS = 4.0
"""An experiment takes a gap away where it is smaller by this factor behind it."""
HOT = 2.0
"""Temperature at which completions are so odd that hardly a text is written as an encoder would write it."""
CHANCE = 1e-3
"""Of a sampler whose completions are as odd as ours showing none."""
LEAST = 1e-4
"""Nats below which a gap is rounding in float32."""
OTHER_PRECISION = 3.0
"""Times the gap that weights in the other precision make, which precision may explain."""

Verdict = Literal["cause", "fine", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One possible cause."""

    cause: str
    verdict: Verdict
    measured: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the sampler said of a wave of prompts, and what the policy says of the same tokens."""

    groups: tuple[Group, ...]
    step: Step
    gap: Tensor
    """[B,U], 0 outside the mask."""

    @property
    def mean(self) -> float:
        return _mean(self.gap, self.step)

    def against(self, logprobs: Tensor) -> float:
        """Mean gap to other log-probs of the same tokens."""
        assert self.step.sampler_logprobs is not None
        return _mean((logprobs - self.step.sampler_logprobs).abs(), self.step)


def _mean(gap: Tensor, step: Step) -> float:
    return gap[step.mask].double().mean().item()


class Doctor:
    """Asks the run's sampler, with the policy's weights as they are. `versions` counts up from `version`."""

    def __init__(self, parts: Parts, prompts: int = 6, version: int = 0) -> None:
        if not isinstance(parts.policy.scorer, TokenScorer) or not isinstance(parts.source, GroupSource):
            raise ValueError("gspo doctor is for language models that answer in one turn, sampled while they train")
        self.parts, self.prompts, self.version = parts, prompts, version
        self.scorer: TokenScorer = parts.policy.scorer
        self.rows = parts.source.next_rows(0, prompts)

    def examine(self) -> tuple[Examined, list[Finding]]:
        """The gap at equal weights, and every cause."""
        self._sync()
        now = self._asked(self.rows, step=0)
        findings = [*self._weights(now), self._support(now), self._tokens(), self._experts(now)]
        named = any(finding.verdict == "cause" for finding in findings)
        return now, [*findings, self._precision(now, named)]

    def _sync(self) -> None:
        self.parts.sampler.sync_weights(self.parts.policy, self.version)
        self.version += 1

    def _asked(self, rows: Sequence[tuple[int, Any]], step: int, backwards: bool = False) -> Examined:
        assert isinstance(self.parts.source, GroupSource)
        renderer = self.parts.source.renderer
        chosen: Any = Backwards(renderer) if backwards else renderer
        groups = replace(self.parts.source, failure_limit=1.0, renderer=chosen).wave(rows, step).groups
        samples = flatten(groups, torch.zeros(sum(len(group.rollouts) for group in groups)), False)
        made = assemble(samples, self.parts.policy.network.device)
        if made.sampler_logprobs is None:
            raise ValueError("the sampler gives no log-probs, so there is nothing to compare")
        return Examined(groups=groups, step=made, gap=self._gap(made))

    def _gap(self, step: Step) -> Tensor:
        assert step.sampler_logprobs is not None
        gap = (self.scorer.logprobs(step).logprobs - step.sampler_logprobs).abs()
        return gap.masked_fill(~step.mask, 0.0)

    def _weights(self, now: Examined) -> list[Finding]:
        """Stale weights, stale cache: with the weights moved, prompts seen before and new ones."""
        with other_weights(self.parts, least_noise(self.parts, now.step, now.mean)):
            self._sync()
            new = self._asked(self.rows, step=1, backwards=True)  # not even a prefix was seen before
            seen = self._asked(self.rows, step=1)
        before = new.against(self.scorer.logprobs(new.step).logprobs)
        self._sync()
        is_stale = before < new.mean / FOLLOWS and new.mean > LEAST
        weights = Finding(
            cause="stale weights",
            verdict="cause" if is_stale else "fine",
            measured=f"behind a move: {new.mean:.2g} to the new weights, {before:.2g} to the old",
            sentence="the sampler still draws from the weights before the last update: they do not reach it"
            if is_stale
            else "new weights reach the sampler",
        )
        is_cached = not is_stale and seen.mean > max(FOLLOWS * max(new.mean, now.mean), LEAST)
        cache = Finding(
            cause="stale prefix cache",
            verdict="cause" if is_cached else "unknown" if is_stale else "fine",
            measured=f"behind a move: prompts seen before {seen.mean:.2g}, new ones {new.mean:.2g}",
            sentence="prompts seen before an update are read from a cache of the old weights: reset it at every update"
            if is_cached
            else "no prompt is read from a cache of old weights",
        )
        return [weights, cache]

    def _support(self, now: Examined) -> Finding:
        """Which distribution the log-probs are of."""
        asked = self.scorer.scoring
        others = {
            "temperature without top-p and top-k": replace(asked, top_p=1.0, top_k=0),
            "the model's own distribution": Sampling(),
        }
        gaps = {
            name: now.against(replace(self.scorer, scoring=other).logprobs(now.step).logprobs)
            for name, other in others.items()
            if _is_other(other, asked)
        }
        if not gaps:
            return Finding(
                cause="sampling support",
                verdict="fine",
                measured="temperature 1, no top-p, no top-k",
                sentence="completions are drawn from the model's own distribution: there is no other to mistake it for",
            )
        nearest = min(gaps, key=lambda name: gaps[name])
        is_cause = gaps[nearest] < now.mean / FOLLOWS and now.mean > LEAST
        return Finding(
            cause="sampling support",
            verdict="cause" if is_cause else "fine",
            measured=f"{now.mean:.2g} as asked, {gaps[nearest]:.2g} for {nearest}",
            sentence=f"it draws as asked but gives log-probs of {nearest}: the ratio compares two distributions"
            if is_cause
            else "its log-probs are of the distribution that is drawn from",
        )

    def _tokens(self) -> Finding:
        """Whether the ids are those that were drawn: few of hot ones are as an encoder would write their text."""
        hot = self._requests(temperature=HOT, top_p=1.0, top_k=0)
        network, renderer = self.parts.policy.network, self.parts.renderer
        own = InProcess(network, renderer.stop_ids, renderer.pad_id, self.parts.config.sampler_rows)
        own_share, share = (self._written_otherwise(each.sample(hot)) for each in (own, self.parts.sampler))
        number = sum(request.n for request in hot)
        is_cause = share < own_share / FOLLOWS and (1.0 - own_share) ** number < CHANCE
        if is_cause:
            sentence = "its tokens are its texts read again, not those that were drawn: their log-probs are of others"
        elif own_share == 0:
            sentence = "here every text has one way of being written, so ids cannot drift"
        else:
            sentence = "ids are those that were drawn; prompts go to it as ids, so no template comes between"
        return Finding(
            cause="tokens",
            verdict="cause" if is_cause else "fine",
            measured=f"at temperature {HOT:g} {share:.0%} of {number} completions have other tokens than their text, "
            f"{own_share:.0%} of ours",
            sentence=sentence,
        )

    def _requests(self, **sampling: Any) -> list[SampleRequest]:
        """For the prompts, under other settings of sampling."""
        source = self.parts.source
        assert isinstance(source, GroupSource)
        read = [(number, *self.parts.renderer.read(row)) for number, row in self.rows]
        asked = replace(source.sampling, **sampling)
        return [
            SampleRequest(
                prompt_ids=ids,
                n=source.group_size,
                seed=source.seed,
                step=2,
                prompt_id=n,
                sampling=asked,
                inputs=inputs,
            )
            for n, ids, inputs in read
        ]

    def _written_otherwise(self, groups: Sequence[Sequence[Completion]]) -> float:
        """Share of completions whose ids are not what their text is encoded to."""
        renderer = self.parts.renderer
        found = [completion.ids for group in groups for completion in group]
        bare = [ids[:-1] if ids and ids[-1] in renderer.stop_ids else ids for ids in found]
        again = [tuple(renderer.encode(renderer.text(ids), special=False)) if ids else () for ids in bare]
        return sum(a != b for a, b in zip(bare, again, strict=True)) / len(bare)

    def _experts(self, now: Examined) -> Finding:
        """Expert choices of sampler and policy on the same tokens."""
        cause = "expert routing"
        if self.parts.policy.network.routers is None:
            return Finding(cause=cause, verdict="fine", measured="no experts", sentence="the model has no experts")
        records = now.step.payload.replay
        free = self.scorer.choosing().logprobs(now.step)
        if records is None or any(record is None for record in records) or free.replay is None:
            return Finding(
                cause=cause,
                verdict="unknown",
                measured="not recorded",
                sentence="the sampler does not say which experts it chose",
            )
        pairs = zip(records, free.replay, strict=True)
        changed = [share_changed(a.experts, b.experts[: len(a.experts)]).mean() for a, b in pairs]
        share = float(sum(changed) / len(changed))
        gap = now.against(free.logprobs)
        through = now.against(replace(self.scorer, routing="R3", balance_coef=0.0).logprobs(now.step).logprobs)
        is_cause = gap > LEAST and through < gap / FOLLOWS
        return Finding(
            cause=cause,
            verdict="cause" if is_cause else "fine",
            measured=f"{share:.1%} of choices differ; {gap:.2g}, through the sampler's experts {through:.2g}",
            sentence='the sampler chooses other experts than the policy: policy.routing = "R3" repeats its choices'
            if is_cause
            else "the same experts, or others of the same say",
        )

    def _floor(self, now: Examined) -> float:
        """Mean difference between rows scored together and one at a time."""
        rows = range(len(now.step.mask))
        together = self.scorer.logprobs(now.step).logprobs
        alone = torch.cat([self.scorer.logprobs(now.step.rows([row])).logprobs for row in rows])
        return _mean((together - alone).abs(), now.step)

    def _precision(self, now: Examined, is_explained: bool) -> Finding:
        floor = self._floor(now)
        network = self.parts.policy.network
        dtype = torch.float32 if network.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
        rounded = replace(self.scorer, network=Network(copy_of(network.model, dtype)))
        other = _mean((rounded.logprobs(now.step).logprobs - self.scorer.logprobs(now.step).logprobs).abs(), now.step)
        name = str(dtype).removeprefix("torch.")
        measured = f"gap {now.mean:.2g}; other batch sizes {floor:.2g}, {name} {other:.2g}"
        if now.mean <= max(FOLLOWS * floor, LEAST):
            verdict, sentence = "fine", "sampler and policy compute alike"
        elif is_explained:
            verdict, sentence = "unknown", "hidden under the cause above: mend that, then ask again"
        elif now.mean <= OTHER_PRECISION * other:
            verdict = "cause"
            sentence = f"what {name} against {_name(network.dtype)} explains: the sampler computes in another precision"
        else:
            verdict, sentence = "unknown", "more than precision explains, and none of the causes above"
        return Finding(cause="precision", verdict=verdict, measured=measured, sentence=sentence)  # type: ignore[arg-type]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_other(a: Sampling, b: Sampling) -> bool:
    return (a.temperature, a.top_p, a.top_k) != (b.temperature, b.top_p, b.top_k)


def advice(parts: Parts, now: Examined) -> str:
    """What the gap means for the objective, and what `old_logprobs = "auto"` makes of it."""
    from gspo.training.update import is_sampler_sound, measure_mismatch

    noise = measure_mismatch(parts.terms, now.step, parts.policy.logprobs(now.step).logprobs)
    whose = "sampler" if is_sampler_sound(noise) else "policy"
    band = "no bounds" if math.isinf(noise.band) else f"bounds of {noise.band:.2g}"
    return (
        f"log-ratio of the objective at equal weights: standard deviation {noise.ratio_std:.2g}, against {band}; "
        f'old_logprobs = "auto" takes the {whose}\'s'
    )


class Backwards:
    """A renderer that turns prompts round: ids that a sampler has read nothing of, not even their beginnings."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def read(self, row: Any) -> tuple[tuple[int, ...], Any]:
        ids, inputs = self._renderer.read(row)
        return ids[::-1], inputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)


def least_noise(parts: Parts, step: Step, gap: float) -> float:
    """Of `NOISES`, for a gap that is there without."""
    own = parts.policy.logprobs(step).logprobs
    for noise in NOISES:
        with other_weights(parts, noise):
            moved = parts.policy.logprobs(step).logprobs
        if _mean((moved - own).abs(), step) > max(MOVES * gap, LEAST_MOVE):
            break
    return noise


@contextmanager
def other_weights(parts: Parts, noise: float) -> Iterator[None]:
    """The policy under a little noise, and then as it was to the bit."""
    trained = [p for _, p in parts.policy.network.named_trainable()]
    kept = [p.detach().clone() for p in trained]
    make = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trained:
            size = p.float().abs().mean().item() or 1.0
            p.add_(noise * size * torch.randn(p.shape, generator=make).to(p.device, p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(trained, kept, strict=True):
                p.copy_(before)
