"""`gspo plan`: the step as a table, a memory estimate, and the same figures in TRL's and verl's words."""

from rich.table import Table

from gspo.cli.idle import idle_settings
from gspo.cli.layout import layout_table
from gspo.cli.memory import memory_table
from gspo.config import RunConfig
from gspo.explain import Clipped
from gspo.functional import as_terms
from gspo.objectives import DualClip, Objective
from gspo.policies.config import CausalLMConfig, DiffusionConfig
from gspo.requirements import unmet
from gspo.samplers.diffusion import schedule
from gspo.training.kinds.diffusion import masking_of


def plan_tables(config: RunConfig) -> list[Table]:
    """What `gspo plan` prints."""
    is_sampled = config.policy.name != "representation"  # of which TRL and verl have nothing
    tables = [step_table(config), words_table(config)] if is_sampled else [class_table(config)]
    if isinstance(config.policy, CausalLMConfig):  # others have one layout, and nothing yet counts what they keep
        tables += [table for table in (layout_table(config), memory_table(config)) if table is not None]
    refused = unmet(
        as_terms((config.objective, *config.terms)),
        config.advantage,
        group_size=config.trained_per_prompt,
        updates_per_rollout=config.updates_per_step * config.epochs,
        reward_functions=len(config.rewards) or None,
        units_compete=not is_sampled,
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


def class_table(config: RunConfig) -> Table:
    """A step of a policy over classes, which samples nothing."""
    updates = config.updates_per_step * config.epochs
    table = Table("one step", "number", "how", title=f"{config.name}: {config.objective.name}, {config.steps} steps")
    table.add_row("images", f"{config.prompts_per_step}", "prompts_per_step; the group of each is its set of classes")
    table.add_row(
        "mini-batches",
        f"{config.updates_per_step}",
        f"of {config.prompts_per_step // config.updates_per_step} images",
    )
    table.add_row("optimizer updates", f"{updates}", f"x epochs {config.epochs}")
    table.add_row("updates off-policy", f"{updates - 1} of {updates}", "what ends a push is the clip bound")
    table.add_section()
    table.add_row("images in the run", f"{config.steps * config.prompts_per_step:,}", f"x steps {config.steps}")
    table.add_row("optimizer updates in the run", f"{config.steps * updates:,}", "")
    return table


def step_table(config: RunConfig) -> Table:
    completions = config.prompts_per_step * config.group_size
    updates = config.updates_per_step * config.epochs
    limit = config.sampling.max_completion_tokens
    per_batch = config.prompts_per_step // config.updates_per_step
    table = Table("one step", "number", "how", title=f"{config.name}: {config.objective.name}, {config.steps} steps")
    table.add_row("prompts", f"{config.prompts_per_step}", "prompts_per_step")
    table.add_row("completions", f"{completions}", f"x group_size {config.group_size}")
    if drafts := config.collector.drafts.number:
        table.add_row("  of them drafts", f"{config.prompts_per_step * drafts}", "collector.drafts.number: not trained")
    if config.environment.is_set:
        limit *= config.environment.max_turns
        name = config.environment.name or config.environment.function
        table.add_row("turns, at most", f"{config.environment.max_turns}", f"with the environment {name}")
    if config.collector.forks:
        groups = config.prompts_per_step * config.environment.max_turns
        table.add_row("groups, at most", f"{groups}", "collector.forks: one for every turn")
    if config.phase:
        pairs = [f" on pairs of {p.pairs_from}" if p.pairs_from else "" for p in config.phase]
        said = ", ".join(f"{p.name} {p.steps}{source}" for p, source in zip(config.phase, pairs, strict=True))
        table.add_row("phases", f"{len(config.phase)}", f"again and again: {said}")
    table.add_row("sampled tokens, at most", f"{completions * limit:,}", f"x {limit} of each")
    table.add_row(
        "mini-batches",
        f"{config.updates_per_step}",
        f"of {per_batch} whole groups = {per_batch * config.group_size} completions",
    )
    table.add_row("optimizer updates", f"{updates}", f"x epochs {config.epochs}")
    table.add_row(
        "updates off-policy", f"{updates - 1} of {updates}", "the first has ratio 1; clipping acts on the rest"
    )
    if isinstance(config.policy, DiffusionConfig):
        for row in diffusion_rows(config, config.policy):
            table.add_row(*row)
    table.add_section()
    table.add_row("prompts in the run", f"{config.steps * config.prompts_per_step:,}", f"x steps {config.steps}")
    table.add_row("completions in the run", f"{config.steps * completions:,}", "")
    table.add_row("optimizer updates in the run", f"{config.steps * updates:,}", "")
    return table


def diffusion_rows(config: RunConfig, policy: DiffusionConfig) -> list[tuple[str, str, str]]:
    """Passes over one completion: what a masked diffusion model costs (backward passes counted as two)."""
    number = masking_of(policy).number
    decoding = sum(
        len(counts)
        for _, counts in schedule(config.sampling.max_completion_tokens, policy.block, policy.denoising_steps)
    )
    reads = {need for term in as_terms((config.objective, *config.terms)) for need in term.traits.needs}
    scored = sum(name in reads for name in ("old", "reference"))
    likelihood = f"{policy.likelihood}, {policy.draws} draws" if policy.likelihood == "elbo" else policy.likelihood
    # A likelihood that is not redrawn is scored once for all epochs.
    before = number * scored * (config.epochs if masking_of(policy).redraws else 1)
    return [
        ("passes that decode", f"{decoding}", f"of each completion, in blocks of {policy.block}"),
        ("passes that score", f"{number}", likelihood + (", coupled" if number == 2 * policy.draws else "")),
        (
            "  in a step",
            f"{before + 3 * number * config.epochs}",
            f"{before} before, 3 x {number} x {config.epochs} to train",
        ),
    ]


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
