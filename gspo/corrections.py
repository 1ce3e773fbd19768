"""Detached multipliers for a mismatch between what sampled, what is trained, and what should count.

With a_it = log pi_old(y_it) - log pi_sampler(y_it) and v_it = exp(a_it): how much likelier the old policy (as the
trainer computes it) finds a token than the engine that sampled it. Each correction gives a weight, [B,U] or [B,1],
and the share of trained units that keep any weight. They multiply the objective's gain and leave every denominator
alone.

| class | weight | source | TRL | verl |
|---|---|---|---|---|
| `TokenTIS` | min(v_it, cap) | truncated importance sampling | token_truncate | rollout_is=token |
| `SequenceTIS` | min(exp sum_t a, cap), or exp mean_t a | | sequence_truncate | rollout_is=sequence |
| `TokenMask` | v_it where v_it <= cap, else 0 | | token_mask | - |
| `SequenceMask` | exp sum_t a where it is <= cap, else 0 | | sequence_mask, its default (3.0) | threshold "lo_hi" |
| `IcePop` | v_it where low <= v_it <= high, else 0 | 2510.18855 | token_mask, clip_min | threshold "0.5_5.0" |
| `GeometricBand` | 1 where low <= exp mean_t a <= high, else 0 | | - | rejection by seq_mean_k1 |
| `OPSM` | 0 where A < 0 and mean_t(log pi_sampler/pi) > delta | 2512.02556 | off_policy_mask_threshold | - |
| `TopEntropy` | 1 on the `share` of units of highest old entropy | 2506.01939 | top_entropy_quantile | - |

verl's k1 bounds are on the inverse ratio: "lo_hi" there is GeometricBand(low=1/hi, high=1/lo) here. A product ratio
has length in its exponent and a geometric mean has not: they are never the same setting here. verl removes rejected
rows from the mask itself, so its denominators shrink too; ours do not.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import Discriminator
from torch import Tensor

from gspo.ratio import bounded, unit_average
from gspo.types import Need, Scores, Step


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What a correction says of some rows."""

    weight: Float[Tensor, "B #U"]
    """Detached multiplier."""
    kept: float
    """Share of the trained units whose weight is not 0; 1 where there are none."""


@runtime_checkable
class Reweighting(Protocol):
    """A correction: `when` says whether stored values suffice, or the current log-probs are read."""

    @property
    def name(self) -> str: ...

    needs: ClassVar[tuple[Need, ...]]
    when: ClassVar[Literal["stored", "current"]]

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction: ...


def mismatch_log_ratio(step: Step) -> Float[Tensor, "B U"]:
    """a_it; 0 outside the mask."""
    assert step.sampler_logprobs is not None
    return (step.old_logprobs - step.sampler_logprobs).masked_fill(~step.mask, 0.0)


def _made(weight: Float[Tensor, "B #U"], step: Step) -> Correction:
    return Correction(weight=weight.detach(), kept=_share(weight.expand_as(step.mask) != 0, step.mask))


def _share(chosen: Bool[Tensor, "B U"], mask: Bool[Tensor, "B U"]) -> float:
    return (chosen & mask).sum().item() / int(mask.sum()) if mask.any() else 1.0


def _zero_outside(value: Tensor, low: float, high: float) -> Tensor:
    return torch.where((value >= low) & (value <= high), value, torch.zeros_like(value))


@dataclass(frozen=True, kw_only=True)
class TokenTIS:
    name: Literal["token_tis"] = "token_tis"
    cap: float = 2.0
    """Largest weight of a token."""

    needs: ClassVar[tuple[Need, ...]] = ("old", "sampler")
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        return _made(bounded(mismatch_log_ratio(step)).exp().clamp(max=self.cap), step)


@dataclass(frozen=True, kw_only=True)
class SequenceTIS:
    name: Literal["sequence_tis"] = "sequence_tis"
    cap: float = 2.0
    """Largest weight of a sequence."""
    ratio: Literal["product", "geometric"] = "product"
    """exp of the sum (the true importance weight of a sequence) or of the mean of a_it (ms-swift's sequence mode)."""

    needs: ClassVar[tuple[Need, ...]] = ("old", "sampler")
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        combine = _product if self.ratio == "product" else _geometric
        return _made(combine(step).clamp(max=self.cap), step)


@dataclass(frozen=True, kw_only=True)
class TokenMask:
    name: Literal["token_mask"] = "token_mask"
    cap: float = 3.0
    """A token whose weight is above it counts for nothing."""

    needs: ClassVar[tuple[Need, ...]] = ("old", "sampler")
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        return _made(_zero_outside(bounded(mismatch_log_ratio(step)).exp(), 0.0, self.cap), step)


@dataclass(frozen=True, kw_only=True)
class SequenceMask:
    name: Literal["sequence_mask"] = "sequence_mask"
    cap: float = 3.0
    """A sequence whose product weight is above it counts for nothing."""

    needs: ClassVar[tuple[Need, ...]] = ("old", "sampler")
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        return _made(_zero_outside(_product(step), 0.0, self.cap), step)


@dataclass(frozen=True, kw_only=True)
class IcePop:
    name: Literal["icepop"] = "icepop"
    low: float = 0.5
    """A token whose weight is below it counts for nothing."""
    high: float = 5.0
    """A token whose weight is above it counts for nothing."""

    needs: ClassVar[tuple[Need, ...]] = ("old", "sampler")
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        return _made(_zero_outside(bounded(mismatch_log_ratio(step)).exp(), self.low, self.high), step)


@dataclass(frozen=True, kw_only=True)
class GeometricBand:
    name: Literal["geometric_band"] = "geometric_band"
    low: float = 0.999
    """A sequence whose geometric-mean ratio is below it counts for nothing."""
    high: float = 1.001
    """A sequence whose geometric-mean ratio is above it counts for nothing."""

    needs: ClassVar[tuple[Need, ...]] = ("old", "sampler")
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        ratio = _geometric(step)
        return _made(((ratio >= self.low) & (ratio <= self.high)).to(ratio.dtype), step)


@dataclass(frozen=True, kw_only=True)
class OPSM:
    name: Literal["opsm"] = "opsm"
    delta: float = 0.5
    """Mean log-ratio, in nats, above which a sequence of negative advantage counts for nothing."""

    needs: ClassVar[tuple[Need, ...]] = ("old",)
    when: ClassVar[Literal["stored", "current"]] = "current"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        """Reads the current log-probs; the stored side is the sampler's where known, else the old policy's."""
        assert scores is not None
        stored = step.old_logprobs if step.sampler_logprobs is None else step.sampler_logprobs
        gap = unit_average((stored - scores.logprobs.detach()).masked_fill(~step.mask, 0.0), step)
        advantage = step.advantage if step.advantage.ndim == 2 else step.advantage[:, None]
        return _made((~((advantage < 0) & (gap > self.delta))).to(gap.dtype), step)


@dataclass(frozen=True, kw_only=True)
class TopEntropy:
    name: Literal["top_entropy"] = "top_entropy"
    share: float = 0.2
    """Share of the step's trained units, those of highest entropy, that count."""

    needs: ClassVar[tuple[Need, ...]] = ("old_entropy",)
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"top_entropy: share is {self.share}; it must be above 0 and at most 1")

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        """Sees the whole step, since the quantile is over it; units equal to the quantile count."""
        assert step.old_entropy is not None
        entropy = step.old_entropy
        chosen = entropy[step.mask].double().sort().values
        if not len(chosen):
            return _made(torch.ones_like(entropy), step)
        position = (1 - self.share) * (len(chosen) - 1)
        below, above = chosen[math.floor(position)], chosen[math.ceil(position)]
        threshold = below + (above - below) * (position - math.floor(position))
        return _made(((entropy.double() >= threshold) & step.mask).to(entropy.dtype), step)


@dataclass(frozen=True, kw_only=True)
class OldProbability:
    """Where units are whole sets of classes: C pi_old(y_it), with C classes in a set.

    Under the mean over a set it makes the objective sum_i pi_old(i) ratio_i A_i, whose gradient at ratio 1 is the
    policy gradient; without it every class weighs 1/C. Not for sampled completions, which come with that probability
    already: `policy.weighting = "pi_old"` of a representation policy sets it.
    """

    name: Literal["old_probability"] = "old_probability"

    needs: ClassVar[tuple[Need, ...]] = ("old",)
    when: ClassVar[Literal["stored", "current"]] = "stored"

    def __call__(self, step: Step, scores: Scores | None = None) -> Correction:
        probability = step.old_logprobs.exp().masked_fill(~step.mask, 0.0)
        # The probabilities of a set add up to 1: those of a row to its number of sets.
        classes = step.mask.sum(dim=1) / probability.sum(dim=1).clamp(min=torch.finfo(probability.dtype).tiny)
        return _made(probability * classes[:, None], step)


def _product(step: Step) -> Float[Tensor, "B 1"]:
    return bounded(mismatch_log_ratio(step).sum(dim=1, keepdim=True)).exp()


def _geometric(step: Step) -> Float[Tensor, "B 1"]:
    return bounded(unit_average(mismatch_log_ratio(step), step)).exp()


AnyCorrection = Annotated[
    TokenTIS | SequenceTIS | TokenMask | SequenceMask | IcePop | GeometricBand | OPSM | TopEntropy,
    Discriminator("name"),
]
"""What a recipe may name under `corrections`."""

__all__ = [
    "OPSM",
    "AnyCorrection",
    "Correction",
    "GeometricBand",
    "IcePop",
    "OldProbability",
    "Reweighting",
    "SequenceMask",
    "SequenceTIS",
    "TokenMask",
    "TokenTIS",
    "TopEntropy",
    "mismatch_log_ratio",
]
