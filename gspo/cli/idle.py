"""Settings that do nothing in this run, said in words before the first step."""

import dataclasses
from typing import Any

from gspo.advantages import GroupStd
from gspo.config import RunConfig
from gspo.models import TINY

SEQUENCE_RATIO = ("gspo", "gspo_token", "luspo")


def idle_settings(config: RunConfig) -> list[str]:
    """One sentence per setting without effect, or with one that its author can hardly mean."""
    return [*_ratio(config), *_signal(config), *_tables(config)]


def _ratio(config: RunConfig) -> list[str]:
    found = []
    updates = config.updates_per_step * config.epochs
    objective = config.objective
    objective = getattr(objective, "base", objective)  # DualClip and EGSW hold the objective that clips
    low, high = (getattr(objective, name, None) for name in ("clip_low", "clip_high"))
    has_clip = low is not None
    is_diffusion = config.policy.name == "diffusion"  # the ratio of two bounds moves by some 1e-2
    if updates == 1:
        found.append(
            "updates_per_step = 1 and epochs = 1: the policy updated is the one that sampled, so the ratio is "
            "identically 1 and no clip bound acts"
            + (f" (objective {objective.name}, {low:g}/{high:g})" if has_clip else "")
        )
    elif has_clip and objective.name in SEQUENCE_RATIO and min(low, high) >= 0.05 and not is_diffusion:
        found.append(
            f"clip bounds {low:g}/{high:g} on a length-normalised sequence ratio: it moves by about 1e-3 an update, so "
            "these are practically never hit; the paper uses 3e-4/4e-4"
        )
    elif has_clip and objective.name not in SEQUENCE_RATIO and max(low, high) < 0.005:
        found.append(
            f"clip bounds {low:g}/{high:g} on token ratios: nearly every token leaves such a band at once and loses "
            "its gradient; 0.2 is usual (3e-4 belongs to GSPO's sequence ratio)"
        )
    if objective.name == "dr_grpo" and objective.max_length != config.sampling.max_completion_tokens:
        found.append(
            f"objective.max_length = {objective.max_length} differs from sampling.max_completion_tokens = "
            f"{config.sampling.max_completion_tokens}: it only rescales the loss, which AdamW mostly undoes"
        )
    if updates == 1 and config.old_logprobs == "policy":
        found.append('old_logprobs = "policy" with one update per rollout batch: a second forward for a ratio of 1')
    return found


def _signal(config: RunConfig) -> list[str]:
    found = []
    if config.trained_per_prompt == 1:
        found.append("group_size = 1: a group of one has nothing to compare with; every advantage is 0")
    for i, term in enumerate(config.terms):
        if term.coef == 0 and term.name != "adaptive_entropy":
            found.append(f"terms.{i} ({term.name}): coef = 0, so the term does nothing but cost a forward pass")
    for i, reward in enumerate(config.rewards):
        if reward.weight == 0:
            found.append(f"rewards.{i} ({reward.name or reward.function}): weight = 0, so it is only logged")
    if len(config.rewards) == 1 and config.rewards[0].weight not in (0.0, 1.0) and config.advantage.name == "group_std":
        found.append("a single reward's weight: group_std divides it out again")
    if config.objective.name == "dr_grpo" and config.advantage.name == "group_std":
        found.append("dr_grpo with advantage group_std: the paper removes the division by std; use group_mean")
    if not config.objective.traits.reads_advantage and config.advantage != GroupStd():
        found.append(
            f"advantage {config.advantage.name}: objective {config.objective.name} is a loss on rewards and reads none"
        )
    if config.advantage.name == "gdpo" and len(config.rewards) == 1:
        found.append("advantage gdpo with one reward: group_std with a further whitening over the batch")
    for correction in config.corrections:
        if "sampler" in correction.needs and config.old_logprobs == "sampler":
            found.append(
                f"corrections: {correction.name} weighs old against sampler log-probs, and old_logprobs = "
                '"sampler" makes them the same'
            )
    return found


def _tables(config: RunConfig) -> list[str]:
    found = []
    if not config.collector.refill:
        found += _changed(config, "collector", ("max_rounds",), "collector.refill is off")
    if not config.environment.is_set:
        names = tuple(f.name for f in dataclasses.fields(config.environment) if f.name not in ("name", "function"))
        found += _changed(config, "environment", names, "no environment is named")
    if not config.collector.forks:
        found += _changed(config, "collector", ("continuation",), "collector.forks is off")
    drafts = config.collector.drafts
    if not drafts.number and drafts != type(drafts)():
        found.append("collector.drafts has no effect: its number is 0")
    if config.evaluation.temperature == 0:
        found += _changed(config, "evaluation", ("samples", "greedy"), "evaluation.temperature is 0: one greedy sample")
    if config.schedule.kind == "constant":
        found += _changed(config, "schedule", ("final",), "the schedule is constant")
    if not config.lora.rank:
        found += _changed(config, "lora", ("alpha", "targets"), "lora.rank is 0")
    if config.policy.name == "diffusion":
        found += _of_diffusion(config)
    if config.model != TINY:
        names = tuple(field.name for field in dataclasses.fields(config.tiny))
        found += _changed(config, "tiny", names, f"model is {config.model!r}")
    if not config.cold_start.steps:
        names = ("batch", "lr", "warmup_steps", "stop_at", "check_every")
        found += _changed(config, "cold_start", names, "cold_start.steps is 0")
    return found


def _of_diffusion(config: RunConfig) -> list[str]:
    policy, found = config.policy, []
    if config.layout != RunConfig.layout:
        found.append(f'layout = {config.layout!r} has no effect: policy = "diffusion" has one, rows without padding')
    if config.old_logprobs != RunConfig.old_logprobs:
        found.append("old_logprobs has no effect: only the policy knows the likelihood of a decoded completion")
    if policy.likelihood == "mean_field":
        names = ("draws", "is_coupled")
        found += _changed(config, "policy", names, "policy.likelihood is mean_field: nothing is drawn")
    return found


def _changed(config: RunConfig, table: str, names: tuple[str, ...], reason: str) -> list[str]:
    """Fields that were given another value than the default although `reason` makes them idle."""
    value: Any = getattr(config, table)
    default = type(value)()
    return [
        f"{table}.{name} = {getattr(value, name)!r} has no effect: {reason}"
        for name in names
        if getattr(value, name) != getattr(default, name)
    ]
