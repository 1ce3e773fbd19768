"""The learning rate as a function of the update's number: nothing to save."""

import math

from gspo.config import Schedule


def learning_rate(schedule: Schedule, peak: float, update: int, updates_per_step: int, total_steps: int) -> float:
    """Rate of optimizer update number `update` (0-based) in a run of `total_steps` rollout batches."""
    warmup = schedule.warmup_steps * updates_per_step
    if update < warmup:
        return peak * (update + 1) / warmup
    if schedule.kind == "constant":
        return peak
    span = max(total_steps * updates_per_step - warmup, 1)
    done = min((update - warmup) / span, 1.0)
    left = 1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (schedule.final + (1 - schedule.final) * left)
