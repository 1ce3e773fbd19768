"""The memory estimate of `gspo plan`: counted from shapes, nothing is loaded and nothing runs.

What autograd keeps is counted by sending fake tensors (shapes without storage) through a shallow copy of the model:
every family, dtype and adapter is counted as it is. The rest are products of sizes. Lengths are those of the run's
first prompts and of completions that all reach `max_completion_tokens`, so a run whose completions stop early stays
below.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gspo.config import RunConfig
from gspo.data import load_dataset, rows_at
from gspo.functional import as_terms
from gspo.heap import returns_blocks
from gspo.models import SMOLLM2, TINY, LoRA, cache_folder, character_tokenizer, tiny_shape, with_lora
from gspo.policies.attention import Layer, attention_of_our_own
from gspo.policies.likelihood import CHUNK_ELEMENTS
from gspo.policies.linear_head import CACHED_ELEMENTS
from gspo.policies.prefixes import pack
from gspo.policies.routing import experts_of
from gspo.renderers import Renderer

UNKNOWN_PROMPT = 64
"""Tokens of a prompt where the data cannot be read here."""
LIBRARIES = 96 * 2**20
"""What a run's process comes to hold beyond this one's: libraries loaded on the way, thread pools."""
HEAP = 1.25
"""What is kept, as resident memory: pieces freed between kept tensors stay with the process (benchmarks/memory.py's
model: 1.60 MiB a token of which 1.28 are counted)."""
TIDY_HEAP = 1.1
"""The same where the heap gives blocks back (gspo.heap): what is smaller than a page-mapped block still stays."""
COUNTED_TOKENS = 64
"""Tokens sent through the fake model; what is kept is proportional to them."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What an estimate needs to know of a model. Bytes are those that autograd keeps, per token."""

    parameters: int
    trainable: int
    dtype: torch.dtype
    width: int
    layers: int
    vocabulary: int
    kv_width: int
    is_tied: bool
    kept_by_layer: float
    kept_elsewhere: float

    @property
    def size(self) -> int:
        return self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the longest of the first prompts, and of the largest micro-batch."""

    prompt: int
    micro_batch: int
    predicted: int
    """Positions of the micro-batch that predict a trained token."""
    is_one_batch: bool
    """Whether an update is one micro-batch: then there is no gradient yet when its activations are at their height."""


def memory_table(config: RunConfig) -> Table | None:
    """None where the model's configuration is not at hand without downloading."""
    found = model_configuration(config)
    if found is None:
        return None
    model = read_model(config, found)
    parts, (training, sampling) = estimate(config, model)
    table = Table("memory, estimated", "MiB", title=f"{config.model}: {model.parameters / 1e6:,.1f} M parameters")
    for name, value in parts.items():
        if value:
            table.add_row(name, f"{value / 2**20:,.0f}")
    table.add_section()
    table.add_row("peak while training", f"{training / 2**20:,.0f}")
    table.add_row("peak while sampling", f"{sampling / 2**20:,.0f}")
    return table


def estimate(config: RunConfig, model: Model) -> tuple[dict[str, int], tuple[int, int]]:
    """Bytes of each part, and the peaks while training and while sampling."""
    lengths = read_lengths(config)
    is_tidy = returns_blocks(model.parameters)
    heap = TIDY_HEAP if is_tidy else HEAP
    is_half = model.size < 4
    per_layer = lengths.micro_batch * model.kept_by_layer
    layers = 1 if config.checkpoint_activations else model.layers
    inputs = lengths.micro_batch * model.width * model.size * model.layers if config.checkpoint_activations else 0
    logits = lengths.predicted * model.vocabulary
    sampled = min(config.sampler_rows, config.prompts_per_step * config.group_size)
    own_prompts = min(config.prompts_per_step, -(-sampled // config.group_size))
    cached = sampled * config.sampling.max_completion_tokens + own_prompts * lengths.prompt
    evaluated = min(config.sampler_rows, config.evaluation.prompts)  # one attempt each, and each with its own prompt
    longest = config.evaluation.max_completion_tokens or config.sampling.max_completion_tokens
    cached = max(cached, evaluated * (longest + lengths.prompt))
    sampled = max(sampled, evaluated)
    reads = {need for term in as_terms((config.objective, *config.terms)) for need in term.traits.needs}
    has_reference = "reference" in {*reads, *config.advantage.traits.needs} and not config.lora.rank
    masters = 4 * model.trainable if is_half and not config.lora.rank else 0
    held = {
        "process": resident() + LIBRARIES,
        f"weights ({str(model.dtype).removeprefix('torch.')})": model.parameters * model.size,
        "float32 master weights": masters,
        "AdamW moments (float32)": 8 * model.trainable,
        "reference weights": model.parameters * model.size if has_reference else 0,
    }
    gradients = {"gradients (float32)": 4 * model.trainable}
    forward = {
        f"kept for the backward pass ({lengths.micro_batch:,} tokens)": round(
            heap * (inputs + layers * per_layer + lengths.micro_batch * model.kept_elsewhere)
        ),
        "working memory of a layer": round(per_layer),
        # Kept logits, or a few blocks of them; hidden states and their gradient in float32.
        "head": 4 * (logits if logits <= CHUNK_ELEMENTS else 0)
        + 5 * 4 * min(CACHED_ELEMENTS, logits)
        + lengths.predicted * model.width * (4 + 2 * model.size),
        # A tied weight has two gradients in half precision until the last of them is there.
        "gradient of the head": model.vocabulary * model.width * model.size if _trains_head(config, model) else 0,
    }
    decoding = {
        f"key-value cache while sampling ({sampled} rows)": cached * model.layers * 2 * model.kv_width * model.size,
        "logits while sampling": 4 * 4 * sampled * model.vocabulary,
    }
    resting = sum(held.values())
    backward, grown = sum(forward.values()), gradients["gradients (float32)"]
    # Gradients of a single micro-batch grow as its activations go; half-precision masters' gradients never go.
    is_apart = lengths.is_one_batch and not masters
    # Where the parameters are their own masters, gradients come to lie between activations: what these leave is then in
    # pieces that the next micro-batch's do not fit into (measured: as much again as the gradients).
    gaps = {"gaps between gradients": 0 if is_apart or masters or is_tidy else grown}
    training = resting + (max(backward, grown) if is_apart else backward + grown + sum(gaps.values()))
    sampling = resting + sum(decoding.values()) + (grown if masters else 0)
    return {**held, **gradients, **gaps, **forward, **decoding}, (training, sampling)


def _trains_head(config: RunConfig, model: Model) -> bool:
    return model.is_tied and not config.lora.rank


def resident() -> int:
    """This process's resident memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    return 1024 * int(next(x for x in status.read_text().splitlines() if x.startswith("VmRSS:")).split()[1])


def read_lengths(config: RunConfig) -> Lengths:
    found, limit = first_prompts(config), config.sampling.max_completion_tokens
    prompt = max(map(len, found), default=UNKNOWN_PROMPT)
    prompts, group = max(1, config.prompts_per_step // config.updates_per_step), config.group_size
    is_padded = config.layout in ("padded", "packed")
    # What goes forward together: a completion with its prompt, or a prompt with all its completions.
    block = prompt + limit if is_padded else prompt + group * limit
    blocks = prompts * group if is_padded else prompts
    together = min(blocks, max(1, config.micro_batch_tokens // block))
    tokens = together * block
    first = found[:together]
    if first and not is_padded:  # prompts that begin alike share that too
        rows = [ids for ids in first for _ in range(group)]
        tokens = min(tokens, len(pack(rows, [(-1 - i,) * limit for i in range(len(rows))])))
    return Lengths(
        prompt=prompt,
        micro_batch=tokens,
        predicted=together * limit * (1 if is_padded else group),
        is_one_batch=together == blocks,
    )


def first_prompts(config: RunConfig) -> list[tuple[int, ...]]:
    """The prompts of the run's first step, in tokens; none where data or tokenizer cannot be read here."""
    from transformers import AutoTokenizer

    try:
        rows = load_dataset(config.data, config.seed).train
        tokenizer = (
            character_tokenizer(config.tiny.alphabet)
            if config.model == TINY
            else AutoTokenizer.from_pretrained(_folder(config))
        )
    except (OSError, ValueError, ModuleNotFoundError):
        return []
    renderer = Renderer(tokenizer, system_prompt=config.system_prompt, chat=config.chat, stop=config.stop)
    first = rows_at(0, min(config.prompts_per_step, len(rows)), len(rows), config.seed)
    return [renderer.prompt_ids(rows[i]["prompt"]) for i in first]


def _folder(config: RunConfig) -> str:
    return str(cache_folder() / SMOLLM2) if config.model == SMOLLM2 else config.model


def model_configuration(config: RunConfig) -> Any:
    """The model's transformers configuration; None where it would have to be downloaded."""
    from transformers import AutoConfig

    if config.model == TINY:
        return tiny_shape(config.tiny, character_tokenizer(config.tiny.alphabet))
    try:
        return AutoConfig.from_pretrained(_folder(config)).get_text_config()
    except (OSError, ValueError):
        return None


def read_model(config: RunConfig, found: Any) -> Model:
    parameters = sum(p.numel() for p in _empty(found, found.num_hidden_layers, torch.float32, LoRA()).parameters())
    name = config.dtype if config.dtype != "auto" else "float32" if parameters < 50e6 else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    # Products of grouped experts know their shapes in bfloat16 alone.
    counted = torch.bfloat16 if experts_of(found) else dtype
    one, two = (_empty(found, n, counted, config.lora) for n in (1, 2))
    kept = [_kept(model) / COUNTED_TOKENS * dtype.itemsize / counted.itemsize for model in (one, two)]
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (one, two)]
    head = getattr(found, "head_dim", None) or found.hidden_size // found.num_attention_heads
    return Model(
        parameters=parameters,
        trainable=trained[0] + (found.num_hidden_layers - 1) * (trained[1] - trained[0]),
        dtype=dtype,
        width=found.hidden_size,
        layers=found.num_hidden_layers,
        vocabulary=found.vocab_size,
        kv_width=head * found.num_key_value_heads,
        is_tied=found.tie_word_embeddings,
        kept_by_layer=kept[1] - kept[0],
        kept_elsewhere=2 * kept[0] - kept[1],
    )


def _empty(found: Any, layers: int, dtype: torch.dtype, lora: LoRA) -> nn.Module:
    """The model with so many layers, as shapes."""
    from transformers import AutoModelForCausalLM

    shallow = copy.deepcopy(found)
    shallow.num_hidden_layers = layers
    if getattr(found, "layer_types", None):
        shallow.layer_types = found.layer_types[:layers]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shallow, dtype=dtype)
        return with_lora(model, lora, 0) if lora.rank else model


def _kept(model: nn.Module) -> int:
    """Bytes that autograd keeps of a forward pass over COUNTED_TOKENS, beyond the parameters; no logits."""
    kept: dict[int, tuple[Any, int]] = {}
    with FakeTensorMode():
        own = _with_fake_tensors(model)

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage, storage.nbytes())  # held, so that no other takes its address
            return tensor

        base = model.get_base_model() if type(model).__module__.startswith("peft.") else model
        ids = torch.zeros(1, COUNTED_TOKENS, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), attention_of_our_own(base.config):
            base.base_model(input_ids=ids, use_cache=False, gspo_attention=_CountedAttention())
    return sum(size for _, size in kept.values())


def _with_fake_tensors(model: nn.Module) -> set[int]:
    """Give a model on the meta device fake tensors that claim to be on the CPU; the addresses of their storages."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for name, old in tensors.items():
                if old is None:
                    continue
                if old not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[old] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                tensors[name] = made[old]
    return {tensor.untyped_storage()._cdata for tensor in made.values()}


class _CountedAttention:
    """Keeps what fused attention keeps: query, key, value, output, and a number per head."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: Layer) -> Tensor:
        return _Kept.apply(query, key, value)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Sequence[Tensor]:
        return ctx.saved_tensors[:3]
