"""verl's rollout batch in our words.

data.train_batch_size and actor.ppo_mini_batch_size count prompts; a prompt takes rollout.n completions. A rollout batch
makes train_batch_size / ppo_mini_batch_size updates, ppo_epochs times.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gspo.importing.report import Batch, Settings, whole_groups

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout.", "actor_rollout_ref.model."
OPTIM, CORRECTION = f"{ACTOR}optim.", "algorithm.rollout_correction."
BATCH, MINI, EPOCHS, N = "data.train_batch_size", f"{ACTOR}ppo_mini_batch_size", f"{ACTOR}ppo_epochs", f"{ROLLOUT}n"
LOSS_MODE, AVERAGING = f"{ACTOR}policy_loss.loss_mode", f"{ACTOR}loss_agg_mode"
ESTIMATOR = "algorithm.adv_estimator"


@dataclass(frozen=True, kw_only=True)
class Verl:
    """What handlers read."""

    settings: Settings
    batch: Batch
    prompts: int = 0
    """Rows of the training data; 0 where the user did not say."""

    @property
    def is_bypassed(self) -> bool:
        """The sampler's log-probs are the old ones."""
        return self.settings.is_on(f"{CORRECTION}bypass_mode")

    @property
    def micro_batches(self) -> int | None:
        """Micro-batches of an update on each process; None where they are cut by tokens, or not set."""
        s = self.settings
        size = s[f"{ACTOR}ppo_micro_batch_size_per_gpu"]
        if size is None or s.is_on(f"{ACTOR}use_dynamic_bsz"):
            return None
        processes = s.count("trainer.n_gpus_per_node") * s.count("trainer.nnodes")
        number = Fraction(self.batch.rows, processes * s.count(f"{ACTOR}ppo_micro_batch_size_per_gpu"))
        return int(number) if number.denominator == 1 else None


def batch_of(s: Settings) -> Batch:
    """What verl refuses is refused here."""
    prompts, mini, group_size, epochs = s.count(BATCH), s.count(MINI), s.count(N), s.count(EPOCHS)
    if mini > prompts:
        raise ValueError(f"{MINI} = {mini} is more than {BATCH} = {prompts}; verl refuses that too")
    updates = max(1, round(prompts / mini))
    whole = whole_groups(prompts, updates)
    is_exact = prompts % mini == 0
    why = f"{prompts} / {mini} is not whole; ours makes {whole} updates of {prompts // whole} prompts"
    return Batch(
        prompts=prompts,
        group_size=group_size,
        updates=whole,
        epochs=epochs,
        made=updates * epochs,
        verdict="equal" if is_exact else "different",
        why="" if is_exact else why,
    )


def bounds(s: Settings) -> tuple[float, float]:
    """(low, high); clip_ratio counts only where these are null."""
    keys = (f"{ACTOR}clip_ratio_low", f"{ACTOR}clip_ratio_high")
    return tuple(s.number(key if s[key] is not None else f"{ACTOR}clip_ratio") for key in keys)


def band(value: Any) -> tuple[float | None, float]:
    """A threshold: 2.0, or "0.5_5.0" as (lower, upper)."""
    low, both, high = str(value).partition("_")
    try:
        return (float(low), float(high)) if both else (None, float(low))
    except ValueError:
        raise ValueError(f"threshold {value!r} is neither a number nor lower_upper such as 0.5_5.0") from None


def is_k1_in_reward(lib: Verl) -> bool:
    """The KL inside the reward that reinforce_pp has here."""
    s = lib.settings
    return s["algorithm.kl_penalty"] in ("kl", "k1") and s["algorithm.kl_ctrl.type"] == "fixed"


def gives_units(lib: Verl) -> bool:
    """Whether our estimator gives an advantage per token."""
    s = lib.settings
    has_kl = s.is_on("algorithm.use_kl_in_reward") and is_k1_in_reward(lib)
    return s[ESTIMATOR] == "reinforce_plus_plus" and (has_kl or s.number("algorithm.gamma") != 1)
