"""Length of a run of verl, its learning rate and its optimizer, as settings of ours."""

from collections.abc import Mapping

from gspo.importing.report import Handler, Said, nothing, same
from gspo.importing.verl_step import ACTOR, OPTIM, Verl


def _total_steps(lib: Verl, key: str) -> Said:
    if lib.settings[key] is None:
        return Said(verdict="equal", why="trainer.total_epochs counts")
    return Said(verdict="equal", why="rollout batches, as here", sets={"steps": lib.settings.count(key)})


def _epochs(lib: Verl, key: str) -> Said:
    if lib.settings["trainer.total_training_steps"] is not None:
        return Said(verdict="no counterpart", why="trainer.total_training_steps overrides it")
    per_epoch = lib.prompts // lib.batch.prompts
    epochs = lib.settings.count(key)
    if not per_epoch:
        why = "the length of the run follows from the size of the data: give --prompts N, or set steps"
        return Said(verdict="different", why=why)
    why = f"{epochs} epochs of {lib.prompts} prompts / {lib.batch.prompts} per rollout batch"
    return Said(verdict="equal", why=why, sets={"steps": epochs * per_epoch})


def _warmup_batches(lib: Verl) -> int | None:
    """Rollout batches of warm-up; None where it is a share of a length that is not known."""
    s = lib.settings
    if s[f"{OPTIM}lr_warmup_steps"] is not None and s.number(f"{OPTIM}lr_warmup_steps") > 0:
        return s.count(f"{OPTIM}lr_warmup_steps")
    share = s.number(f"{OPTIM}lr_warmup_steps_ratio")
    if not share:
        return 0
    total = s["trainer.total_training_steps"] or s.count("trainer.total_epochs") * (lib.prompts // lib.batch.prompts)
    return int(share * total) if total else None


def _warmup(lib: Verl, key: str) -> Said:
    batches = _warmup_batches(lib)
    if batches is None:
        return Said(verdict="different", why="a share of a length that is not known: give --prompts N")
    if batches == 0:
        return Said(verdict="equal", why="none", sets={"schedule.warmup_steps": 0})
    why = "theirs is 0 in the first rollout batch and moves once per batch; ours moves with every update"
    return Said(verdict="different", why=why, sets={"schedule.warmup_steps": batches})


def _schedule(lib: Verl, key: str) -> Said:
    """optim.lr_scheduler_type, and the deprecated optim.warmup_style that overrides it."""
    s = lib.settings
    if s[key] is None:
        return Said(verdict="equal", why="not set")
    if key.endswith("type") and s[f"{OPTIM}warmup_style"] is not None:
        return Said(verdict="no counterpart", why="warmup_style overrides it")
    if s.choice(key, ("constant", "cosine")) == "constant":
        return Said(verdict="equal", sets={"schedule.kind": "constant"})
    sets = {"schedule.kind": "cosine", "schedule.final": float(s[f"{OPTIM}min_lr_ratio"] or 0.0)}
    if s.number(f"{OPTIM}num_cycles") != 0.5:
        return Said(verdict="different", why="half a cosine here", sets=sets)
    is_exact = lib.batch.made <= 1 and not _warmup_batches(lib)
    why = "" if is_exact else "theirs moves once per rollout batch, ours with every update"
    return Said(verdict="equal" if is_exact else "different", why=why, sets=sets)


def _see_schedule(lib: Verl, key: str) -> Said:
    s = lib.settings
    if (s[f"{OPTIM}warmup_style"] or s[f"{OPTIM}lr_scheduler_type"]) != "cosine":
        return Said(verdict="no counterpart", why="read with lr_scheduler_type=cosine alone")
    return Said(verdict="equal", why="see lr_scheduler_type")


def _optimizer(lib: Verl, key: str) -> Said:
    is_same = lib.settings[key] in ("AdamW", "adamw", "adam", "torch.optim")
    return Said(verdict="equal" if is_same else "different", why="AdamW is the optimizer here")


def _weight_decay(lib: Verl, key: str) -> Said:
    value = lib.settings.number(key)
    why = "theirs decays norms and biases too, ours matrices alone" if value else ""
    return Said(verdict="different" if value else "equal", why=why, sets={"optimizer.weight_decay": value})


def _betas(lib: Verl, key: str) -> Said:
    value = lib.settings[key]
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{key} is {value!r}; it must be two numbers such as [0.9,0.999]")
    return Said(verdict="equal", sets={"optimizer.beta1": value[0], "optimizer.beta2": value[1]})


def _grad_clip(lib: Verl, key: str) -> Said:
    why = f"changes nothing in verl 0.9.1: its engines read {OPTIM}clip_grad"
    return Said(verdict="no counterpart", why=why)


KEYS: Mapping[str, Handler] = {
    f"{ACTOR}grad_clip": _grad_clip,
    f"{OPTIM}lr": same("optimizer.lr"),
    f"{OPTIM}weight_decay": _weight_decay,
    f"{OPTIM}betas": _betas,
    f"{OPTIM}clip_grad": same("optimizer.max_grad_norm"),
    f"{OPTIM}optimizer": _optimizer,
    f"{OPTIM}optimizer_impl": _optimizer,
    f"{OPTIM}lr_warmup_steps": _warmup,
    f"{OPTIM}lr_warmup_steps_ratio": _warmup,
    f"{OPTIM}lr_scheduler_type": _schedule,
    f"{OPTIM}warmup_style": _schedule,
    f"{OPTIM}min_lr_ratio": _see_schedule,
    f"{OPTIM}num_cycles": _see_schedule,
    f"{OPTIM}total_training_steps": nothing("verl fills it in from trainer.total_training_steps"),
    "trainer.total_training_steps": _total_steps,
    "trainer.total_epochs": _epochs,
}
