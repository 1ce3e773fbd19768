"""Length of a run of TRL, its learning rate and its optimizer, as settings of ours."""

import math

from gspo.importing.report import Said, same
from gspo.importing.trl_step import TRL, updates_of_run

SCHEDULES = (
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
    "cosine_with_restarts", "reduce_lr_on_plateau", "warmup_stable_decay", "cosine_warmup_with_min_lr", "greedy",
)  # fmt: skip


def _max_steps(lib: TRL, key: str) -> Said:
    if lib.settings.number(key) <= 0:
        return Said(verdict="equal", why="off: num_train_epochs counts")
    return _length(lib, f"{lib.settings.count(key)} updates")


def _num_train_epochs(lib: TRL, key: str) -> Said:
    if lib.settings.number("max_steps") > 0:
        return Said(verdict="no counterpart", why="max_steps overrides it")
    if not updates_of_run(lib):
        why = "the length of the run follows from the size of the data: give --prompts N, or set steps"
        return Said(verdict="different", why=why)
    return _length(lib, f"{lib.settings.number(key):g} epochs of {lib.prompts} prompts = {updates_of_run(lib)} updates")


def _length(lib: TRL, what: str) -> Said:
    updates, made = updates_of_run(lib), lib.batch.made
    steps = math.ceil(updates / made)
    is_exact = steps * made == updates
    why = f"{what} / {made:g} per rollout batch" + ("" if is_exact else ", rounded up to whole batches")
    return Said(verdict="equal" if is_exact else "different", why=why, sets={"steps": steps})


def _schedule(lib: TRL, key: str) -> Said:
    s = lib.settings
    kind = s.choice(key, SCHEDULES)
    given = s["lr_scheduler_kwargs"] or {}
    if kind in ("constant", "constant_with_warmup"):
        return Said(verdict="equal", sets={"schedule.kind": "constant"})
    if kind in ("linear", "cosine"):
        return Said(verdict="equal", sets={"schedule.kind": kind})
    if kind in ("cosine_with_min_lr", "polynomial") and isinstance(given, dict):
        floor = given.get("min_lr", given.get("lr_end", 1e-7 if kind == "polynomial" else None))
        final = given["min_lr_rate"] if "min_lr_rate" in given else (floor or 0.0) / s.number("learning_rate")
        is_plain = given.get("power", 1.0) == 1.0 and given.get("num_cycles", 0.5) == 0.5
        ours = "cosine" if kind == "cosine_with_min_lr" else "linear"
        return Said(
            verdict="equal" if is_plain else "different",
            why=f"falls to {final:g} of the peak" + ("" if is_plain else "; power and num_cycles are not here"),
            sets={"schedule.kind": ours, "schedule.final": float(final)},
        )
    return Said(verdict="different", why="schedules here: constant, linear, cosine", sets={"schedule.kind": "constant"})


def _schedule_kwargs(lib: TRL, key: str) -> Said:
    kind, given = lib.settings["lr_scheduler_type"], lib.settings[key]
    if not given or kind in ("cosine_with_min_lr", "polynomial"):
        return Said(verdict="equal", why="see lr_scheduler_type" if given else "none")
    return Said(verdict="no counterpart", why="the schedules here have no further settings")


def _warmup(lib: TRL, key: str) -> Said:
    """warmup_steps (below 1, a share of the run's updates) and transformers 4's warmup_ratio."""
    s = lib.settings
    value, other = s.number(key), s.number("warmup_ratio" if key == "warmup_steps" else "warmup_steps")
    if other and (key == "warmup_ratio" or not value):
        return Said(verdict="no counterpart", why="the other of warmup_steps and warmup_ratio counts")
    if not value:
        return Said(verdict="equal", why="none", sets={"schedule.warmup_steps": 0})
    if s["lr_scheduler_type"] == "constant":
        return Said(verdict="no counterpart", why='lr_scheduler_type="constant" has no warm-up in transformers')
    total = updates_of_run(lib)
    if value < 1 and not total:
        return Said(verdict="different", why="a share of a length that is not known: give --prompts N or max_steps")
    updates = math.ceil(value * total) if value < 1 else int(value)
    made = lib.batch.made
    why = f"{updates} updates / {made:g} per rollout batch; theirs starts at rate 0, one update behind ours"
    return Said(verdict="different", why=why, sets={"schedule.warmup_steps": math.ceil(updates / made)})


def _optim(lib: TRL, key: str) -> Said:
    if str(lib.settings[key]) in ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"):
        return Said(verdict="equal", why="AdamW")
    return Said(verdict="different", why="AdamW is the optimizer here")


def _weight_decay(lib: TRL, key: str) -> Said:
    return Said(
        verdict="equal",
        why="on matrices; norms and biases are left alone in both" if lib.settings.number(key) else "",
        sets={"optimizer.weight_decay": lib.settings[key]},
    )


def _max_grad_norm(lib: TRL, key: str) -> Said:
    return Said(verdict="equal", sets={"optimizer.max_grad_norm": lib.settings[key] or 0.0})


KEYS = {
    "max_steps": _max_steps,
    "num_train_epochs": _num_train_epochs,
    "learning_rate": same("optimizer.lr"),
    "lr_scheduler_type": _schedule,
    "lr_scheduler_kwargs": _schedule_kwargs,
    "warmup_steps": _warmup,
    "warmup_ratio": _warmup,
    "optim": _optim,
    "weight_decay": _weight_decay,
    "adam_beta1": same("optimizer.beta1"),
    "adam_beta2": same("optimizer.beta2"),
    "adam_epsilon": same("optimizer.eps"),
    "max_grad_norm": _max_grad_norm,
}
