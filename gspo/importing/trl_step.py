"""TRL's rollout batch and the length of its run, in our words.

per_device_train_batch_size counts completions. A generation batch has that x processes x steps_per_generation of them,
a prompt takes num_generations, and an update takes gradient_accumulation_steps micro-batches. So a generation batch
makes steps_per_generation / gradient_accumulation_steps updates, num_iterations times.
"""

import math
from dataclasses import dataclass, replace

from gspo.importing.report import Batch, Settings, whole_groups


@dataclass(frozen=True, kw_only=True)
class TRL:
    """What handlers read."""

    settings: Settings
    batch: Batch
    prompts: int = 0
    """Rows of the training data; 0 where the user did not say."""

    @property
    def is_engine_corrected(self) -> bool:
        s = self.settings
        return s.is_on("use_vllm") and s.is_on("vllm_importance_sampling_correction")


def batch_of(s: Settings, world_size: int) -> Batch:
    """Their generation batch in our words; what TRL refuses is refused here."""
    if world_size < 1:
        raise ValueError(f"--world-size is {world_size}; it must be at least 1")
    micro = s.count("per_device_train_batch_size") * world_size
    accumulation, group_size = s.count("gradient_accumulation_steps"), s.count("num_generations")
    steps = _steps_per_generation(s, micro, accumulation)
    if group_size < 2:
        raise ValueError("num_generations is 1; TRL needs at least 2 completions to compare")
    if micro * steps % group_size:
        raise ValueError(
            f"a generation batch of {micro} x {steps} = {micro * steps} completions does not divide into "
            f"num_generations = {group_size}; TRL refuses that too (--world-size is {world_size})"
        )
    prompts, epochs = micro * steps // group_size, s.count("num_iterations")
    made = steps * epochs / accumulation
    batch = Batch(
        prompts=prompts,
        group_size=group_size,
        updates=whole_groups(prompts, max(1, steps // accumulation)),
        epochs=epochs,
        parts=accumulation * world_size,
        made=made,
    )
    if steps % accumulation == 0:
        return _of_whole_groups(batch, steps // accumulation)
    if accumulation % steps == 0 and epochs == 1:
        spans = accumulation // steps
        why = f"one update takes {spans} generation batches, all sampled by the same weights"
        return replace(batch, prompts=spans * prompts, generations=spans, made=1, why=why)
    why = f"updates of {accumulation} micro-batches straddle generation batches of {steps}; ours never do"
    return replace(batch, verdict="different", why=why, generations=2)


def _of_whole_groups(batch: Batch, updates: int) -> Batch:
    if batch.updates == updates:
        return batch
    rows = batch.prompts * batch.group_size // updates
    why = (
        f"their {updates} updates of {rows} completions cut groups of {batch.group_size}; ours are whole: "
        f"{batch.updates} updates of {batch.rows}"
    )
    return replace(batch, verdict="different", why=why)


def _steps_per_generation(s: Settings, micro: int, accumulation: int) -> int:
    if s["generation_batch_size"] is None:
        return accumulation if s["steps_per_generation"] is None else s.count("steps_per_generation")
    if s["steps_per_generation"] is not None:
        raise ValueError("generation_batch_size and steps_per_generation are both set; TRL takes one of them")
    size = s.count("generation_batch_size")
    if size % micro:
        raise ValueError(f"generation_batch_size = {size} is no multiple of the {micro} completions of a micro-batch")
    return size // micro


def updates_of_run(lib: TRL) -> int:
    """Optimizer updates of the run; 0 where that cannot be known."""
    s, b = lib.settings, lib.batch
    if s.number("max_steps") > 0:
        return s.count("max_steps")
    per_epoch = int(lib.prompts // b.prompts * b.made)
    return math.ceil(s.number("num_train_epochs") * per_epoch)
