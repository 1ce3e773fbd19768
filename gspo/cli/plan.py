"""`gspo plan`: the step as a table, a memory estimate, and the same figures in TRL's and verl's words."""

from dataclasses import dataclass

import torch
from rich.table import Table

from gspo.cli.idle import idle_settings
from gspo.config import RunConfig
from gspo.explain import Clipped
from gspo.functional import as_terms
from gspo.models import SMOLLM2, TINY, character_tokenizer, tiny_shape
from gspo.objectives import DualClip, Objective
from gspo.policies.likelihood import CHUNK_ELEMENTS
from gspo.requirements import unmet

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a memory estimate needs to know of a model."""

    parameters: int
    width: int
    layers: int
    intermediate: int
    vocabulary: int
    kv_width: int


def plan_tables(config: RunConfig) -> list[Table]:
    """What `gspo plan` prints."""
    tables = [step_table(config), words_table(config)]
    shape = model_shape(config)
    if shape is not None:
        tables.append(memory_table(config, shape))
    refused = unmet(
        as_terms((config.objective, *config.terms)),
        config.advantage,
        group_size=config.group_size,
        updates_per_rollout=config.updates_per_step * config.epochs,
        reward_functions=len(config.rewards) or None,
    )
    if refused:
        problems = Table("this run would be refused", box=None)
        for line in refused:
            problems.add_row(line)
        tables.append(problems)
    idle = idle_settings(config)
    if idle:
        notes = Table("settings without effect here", box=None)
        for line in idle:
            notes.add_row(line)
        tables.append(notes)
    return tables


def step_table(config: RunConfig) -> Table:
    completions = config.prompts_per_step * config.group_size
    updates = config.updates_per_step * config.epochs
    limit = config.sampling.max_completion_tokens
    per_batch = config.prompts_per_step // config.updates_per_step
    table = Table("one step", "number", "how", title=f"{config.name}: {config.objective.name}, {config.steps} steps")
    table.add_row("prompts", f"{config.prompts_per_step}", "prompts_per_step")
    table.add_row("completions", f"{completions}", f"x group_size {config.group_size}")
    table.add_row("sampled tokens, at most", f"{completions * limit:,}", f"x max_completion_tokens {limit}")
    table.add_row(
        "mini-batches",
        f"{config.updates_per_step}",
        f"of {per_batch} whole groups = {per_batch * config.group_size} completions",
    )
    table.add_row("optimizer updates", f"{updates}", f"x epochs {config.epochs}")
    table.add_row(
        "updates off-policy", f"{updates - 1} of {updates}", "the first has ratio 1; clipping acts on the rest"
    )
    table.add_section()
    table.add_row("prompts in the run", f"{config.steps * config.prompts_per_step:,}", f"x steps {config.steps}")
    table.add_row("completions in the run", f"{config.steps * completions:,}", "")
    table.add_row("optimizer updates in the run", f"{config.steps * updates:,}", "")
    return table


def words_table(config: RunConfig) -> Table:
    """The same figures as TRL's GRPOConfig and verl's overrides would have them, on one device."""
    completions = config.prompts_per_step * config.group_size
    mini = completions // config.updates_per_step
    table = Table("gspo", "TRL (GRPOConfig)", "verl", title="in other words")
    table.add_row(
        "group_size", f"num_generations={config.group_size}", f"actor_rollout_ref.rollout.n={config.group_size}"
    )
    table.add_row(
        "prompts_per_step",
        f"generation_batch_size={completions}",
        f"data.train_batch_size={config.prompts_per_step}",
    )
    table.add_row(
        "updates_per_step",
        f"per_device_train_batch_size={mini}, gradient_accumulation_steps=1, "
        f"steps_per_generation={config.updates_per_step}",
        f"actor.ppo_mini_batch_size={config.prompts_per_step // config.updates_per_step}",
    )
    table.add_row("epochs", f"num_iterations={config.epochs}", f"actor.ppo_epochs={config.epochs}")
    for row in _objective_rows(config.objective):
        table.add_row(*row)
    kl = next((term for term in config.terms if term.name == "reference_kl"), None)
    table.add_row(
        "terms: reference_kl" if kl else "no KL term",
        f"beta={kl.coef if kl else 0.0:g}",
        f"actor.use_kl_loss={bool(kl)}" + (f", actor.kl_loss_coef={kl.coef:g}" if kl else ""),
    )
    limit = config.sampling.max_completion_tokens
    table.add_row("max_completion_tokens", f"max_completion_length={limit}", f"data.max_response_length={limit}")
    table.add_row(
        "temperature",
        f"temperature={config.sampling.temperature:g}",
        f"actor_rollout_ref.rollout.temperature={config.sampling.temperature:g}",
    )
    for column in table.columns:
        column.overflow = "fold"
    return table


NOWHERE = ("no counterpart", "no counterpart")
WORDS = {
    "gspo": (
        'importance_sampling_level="sequence", loss_type="grpo"',
        "policy_loss.loss_mode=gspo, loss_agg_mode=seq-mean-token-mean",
    ),
    "gspo_token": ("no counterpart in 1.16", "policy_loss.loss_mode=gspo, loss_agg_mode=seq-mean-token-mean"),
    "grpo": ('loss_type="grpo"', "loss_mode=vanilla, loss_agg_mode=seq-mean-token-mean, clip_ratio_c out of reach"),
    "dapo": ('loss_type="dapo"', "loss_mode=vanilla, loss_agg_mode=token-mean, clip_ratio_c out of reach"),
    "dr_grpo": ('loss_type="dr_grpo"', "loss_mode=vanilla, loss_agg_mode=seq-mean-token-sum-norm"),
    "sapo": ('loss_type="sapo"', "loss_mode=sapo, loss_agg_mode=seq-mean-token-mean"),
    "cispo": ('loss_type="cispo"', "loss_mode=cispo, loss_agg_mode=token-mean"),
    "gmpo": ("experimental.gmpo", "loss_mode=geo_mean, clip_ratio_low/high as log bounds"),
    "luspo": (
        'importance_sampling_level="sequence", loss_type="luspo"',
        "loss_mode=gspo, loss_agg_mode=seq-mean-token-sum",
    ),
    "vespo": ('loss_type="vespo"', "no counterpart"),
    "dppo": ("no counterpart in 1.16", "loss_mode=dppo_tv or dppo_kl, loss_agg_mode=token-mean"),
    "reinforce": ("RLOOTrainer, one update per batch", "loss_mode=gpg"),
}
"""Objectives in the words of TRL 1.16 and verl 0.9; docs/parity.md has what was compared in numbers."""


def _objective_rows(objective: Objective) -> list[tuple[str, str, str]]:
    if isinstance(objective, DualClip):
        c = f"{objective.c:g}"
        return [*_objective_rows(objective.base), (f"dual clip at {c}", f"delta={c}", f"actor.clip_ratio_c={c}")]
    rows = [(f"objective {objective.name}", *WORDS.get(objective.name, NOWHERE))]
    if isinstance(objective, Clipped) and objective.name in WORDS:
        low, high = objective.clip_low, objective.clip_high
        # CISPO's upper bound is absolute in TRL, and there is no lower one.
        trl = f"epsilon_high={1 + high:g}" if objective.name == "cispo" else f"epsilon={low:g}, epsilon_high={high:g}"
        rows.append(
            (
                f"clip_low {low:g}, clip_high {high:g}",
                trl,
                f"actor.clip_ratio_low={low:g}, actor.clip_ratio_high={high:g}",
            )
        )
    return rows


def model_shape(config: RunConfig) -> Shape | None:
    """From the model's configuration alone; None where that is not at hand without downloading."""
    from transformers import AutoConfig

    if config.model == TINY:
        found = tiny_shape(config.tiny, character_tokenizer(config.tiny.alphabet))
    else:
        from gspo.models import cache_folder

        path = cache_folder() / SMOLLM2 if config.model == SMOLLM2 else config.model
        try:
            found = AutoConfig.from_pretrained(path).get_text_config()
        except (OSError, ValueError):
            return None
    head = getattr(found, "head_dim", None) or found.hidden_size // found.num_attention_heads
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(found).parameters())
    return Shape(
        parameters=parameters,
        width=found.hidden_size,
        layers=found.num_hidden_layers,
        intermediate=found.intermediate_size,
        vocabulary=found.vocab_size,
        kv_width=head * found.num_key_value_heads,
    )


def memory_table(config: RunConfig, shape: Shape) -> Table:
    """An estimate from shapes: weights and optimizer exactly, activations by counting what autograd keeps."""
    dtype = config.dtype if config.dtype != "auto" else "float32" if shape.parameters < 50e6 else "bfloat16"
    size = BYTES[dtype]
    masters = 0 if dtype in ("float32", "float64") else 4 * shape.parameters
    # Per token and layer: norms, q, k, v, attention output, gate, up, their product, residuals.
    kept = 8 * shape.width + 2 * shape.kv_width + 4 * shape.intermediate
    activations = config.micro_batch_tokens * shape.layers * kept * size
    # Float32 logits of one chunk, their softmax and gradient.
    logits = 3 * 4 * min(CHUNK_ELEMENTS, config.micro_batch_tokens * shape.vocabulary)
    rows = min(config.sampler_rows, config.prompts_per_step * config.group_size)
    cache = rows * (config.sampling.max_completion_tokens + 64) * shape.layers * 2 * shape.kv_width * size
    parts = {
        f"weights ({dtype})": shape.parameters * size,
        "float32 master weights": masters,
        "gradients (float32)": 4 * shape.parameters,
        "AdamW moments (float32)": 8 * shape.parameters,
        f"activations of a full micro-batch ({config.micro_batch_tokens:,} tokens)": activations,
        "logits of a chunk": logits,
        f"key-value cache while sampling ({rows} rows, prompts of 64)": cache,
    }
    reads = {need for term in as_terms((config.objective, *config.terms)) for need in term.traits.needs}
    if "reference" in {*reads, *config.advantage.traits.needs} and not config.lora.rank:
        parts["reference weights"] = shape.parameters * size
    table = Table("memory, estimated", "MiB", title=f"{config.model}: {shape.parameters / 1e6:,.1f} M parameters")
    for name, value in parts.items():
        if value:
            table.add_row(name, f"{value / 2**20:,.0f}")
    sampling = f"key-value cache while sampling ({rows} rows, prompts of 64)"
    training = sum(value for name, value in parts.items() if name != sampling)
    table.add_section()
    table.add_row("peak while training (sampling needs less)", f"{training / 2**20:,.0f}")
    return table
