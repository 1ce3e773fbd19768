"""What kind of policy a run trains, as settings: the only place where kinds are told apart by name."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Discriminator


@dataclass(frozen=True, kw_only=True)
class CausalLMConfig:
    """A causal language model: units are completion tokens."""

    name: Literal["causal_lm"] = "causal_lm"
    routing: Literal["free", "R2", "R3"] = "free"
    """Mixture of experts: which experts a token goes to while training. free: as the weights say now; R2: as in the
    pass that made the old log-probs; R3 (2510.11370): as in the sampler."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """A masked diffusion language model (ESPO, 2512.03759): units are completion positions, their log-likelihoods the
    terms of an evidence lower bound."""

    name: Literal["diffusion"] = "diffusion"
    likelihood: Literal["elbo", "mean_field"] = "elbo"
    """elbo: a lower bound of the sequence's log-likelihood, from random masks; mean_field: every position predicted
    from the prompt alone (d1, 2504.12216), the baseline that the paper compares with."""
    draws: int = 2
    """Masks drawn for each likelihood (M)."""
    is_coupled: bool = True
    """Each mask is followed by its complement, so that every position is predicted once (2 forward passes a draw)."""
    length: Literal["fixed", "until_eos"] = "fixed"
    """Positions of a completion that count: all that were decoded (the released code), or those up to the end token."""
    logit_shift: Literal[0, 1] = 0
    """0: the logits at a position predict it (LLaDA); 1: those before it do (Dream)."""
    block: int = 32
    """Positions that are decoded together, blocks from left to right."""
    denoising_steps: int = 0
    """Forward passes that decode a completion, shared out over its blocks; 0: one for every position."""

    def __post_init__(self) -> None:
        for name, least in (("draws", 1), ("block", 1), ("denoising_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """A backbone and a head over classes (GRPO-RM, 2511.15256): units are the classes of an image, or of each pixel."""

    name: Literal["representation"] = "representation"
    weighting: Literal["uniform", "pi_old"] = "uniform"
    """Weight of a class in the loss. uniform: 1/C each, the paper's; pi_old: what the old policy gives it, which makes
    the gradient at ratio 1 the exact policy gradient."""
    accuracy: float = 1.0
    """Reward of the class that is the label."""
    uniformity: float = 1.0
    """Times the old policy's probability of a wrong class, its (negative) reward."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "uniformity"):
            if getattr(self, name) < 0:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class ImageTokensConfig:
    """An autoregressive model of image tokens (2505.17017): units are the tokens, rewards see the decoded image."""

    name: Literal["image_tokens"] = "image_tokens"
    guidance: float = 1.0
    """Weight w of classifier-free guidance while sampling: logits u + w (c - u) of the conditional c and unconditional
    u; 1 samples the conditional model."""
    scoring: Literal["guided", "conditional"] = "guided"
    """What trains: log-probs of the guided distribution that was sampled from, or of the conditional model alone (then
    the ratio is between policies that nobody sampled from; T2I-R1 and others do so)."""

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise ValueError(f"policy.guidance is {self.guidance}; it must not be negative")


PolicyConfig = Annotated[
    CausalLMConfig | DiffusionConfig | RepresentationConfig | ImageTokensConfig, Discriminator("name")
]
"""What a recipe may name under `policy`."""
