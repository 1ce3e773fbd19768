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
    balance_coef: float = 0.0
    """Mixture of experts: weight of the load-balancing loss (2101.03961) in the backward pass; 0.001 is usual."""
    sampler_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the sampler computes in: auto samples from the very weights that train; another dtype from a rounded copy of
    them, as inference engines do."""

    def __post_init__(self) -> None:
        if self.balance_coef < 0:
            raise ValueError(f"policy.balance_coef is {self.balance_coef}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """A masked diffusion language model (ESPO, 2512.03759): units are completion positions, their log-likelihoods the
    terms of an evidence lower bound. `sampling.max_completion_tokens` is the number of positions that are decoded."""

    name: Literal["diffusion"] = "diffusion"
    likelihood: Literal["elbo", "mean_field"] = "elbo"
    """elbo: a lower bound of the sequence's log-likelihood, from random masks; mean_field: every position predicted
    from the prompt alone (d1, 2504.12216), the baseline that the paper compares with."""
    draws: int = 2
    """Masks drawn for each likelihood (M)."""
    is_coupled: bool = True
    """Each mask is followed by its complement, so that every position is predicted once (2 forward passes a draw)."""
    length: Literal["fixed", "until_eos"] = "fixed"
    """Positions of a completion that count: all that were decoded (the released code), or those up to and including the
    first end token, whatever might follow."""
    logit_shift: Literal[0, 1] = 0
    """0: the logits at a position predict it (LLaDA); 1: those before it do (Dream)."""
    block: int = 32
    """Positions that are decoded together, blocks from left to right."""
    denoising_steps: int = 0
    """Forward passes that decode a completion, shared out over its blocks; 0: one for every position."""
    trust_remote_code: bool = False
    """Run the Python files that come with the model (LLaDA and Dream need it); read them first."""

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
    classes: tuple[str, ...] = ()
    """The set of classes; empty: all that occur in the training data."""
    is_dense: bool = False
    """Ask about every pixel (column `labels`) and not about the image."""
    pool: Literal["cls", "mean"] = "cls"
    """What stands for an image: the backbone's first token, or the mean over all."""
    image_size: int = 8
    """Height and width that the embedded model takes."""
    patch_size: int = 2
    """Height and width of its patches."""

    def __post_init__(self) -> None:
        for name, least in (("accuracy", 0), ("uniformity", 0), ("image_size", 1), ("patch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must be at least {least}")
        if len(self.classes) == 1:
            raise ValueError(f"policy.classes is {list(self.classes)}: a choice needs at least two")


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
    height: int = 8
    """Rows of codes in an image."""
    width: int = 8
    """Codes of a row."""
    levels: int = 8
    """Number of image tokens."""
    first_id: int = -1
    """Id of the first of them; -1: they are the last of the vocabulary."""
    null_prompt: str = "."
    """Prompt of the unconditional model."""
    decoder: str = ""
    """Your own decoder from codes to an image, as path/to/file.py:function; empty: the model's, or levels of grey."""

    def __post_init__(self) -> None:
        for name, least in (("guidance", 0), ("height", 1), ("width", 1), ("levels", 2), ("first_id", -1)):
            if getattr(self, name) < least:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must be at least {least}")


PolicyConfig = Annotated[
    CausalLMConfig | DiffusionConfig | RepresentationConfig | ImageTokensConfig, Discriminator("name")
]
"""What a recipe may name under `policy`."""
