"""verl 0.9.1's Hydra overrides as a recipe of ours.

`KEYS` has the handlers; `verl_keys` lists every other name of verl's configuration, with the reason why nothing here
answers to it. What a handler needs beside its own value it reads from `Verl` (`verl_step`): the settings over verl's
defaults, and the rollout batch they make. The loss, advantages, corrections, the schedule and the run are in files of
their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gspo.importing import verl_advantage, verl_correction, verl_loss, verl_run, verl_schedule
from gspo.importing.reading import hydra, refuse_unknown
from gspo.importing.report import Handler, Imported, Said, Settings, imported, nothing, plural, same
from gspo.importing.verl_keys import is_open, names, reason
from gspo.importing.verl_run import OVERLONG, named_function
from gspo.importing.verl_step import ACTOR, BATCH, CORRECTION, EPOCHS, MINI, MODEL, OPTIM, ROLLOUT, N, Verl, batch_of

LIBRARY = "verl 0.9.1"


def import_verl(words: Sequence[str], *, prompts: int = 0) -> Imported:
    """["a.b=1", "run.sh"] -> recipe and report. `prompts`: rows of the data, for runs counted in epochs."""
    given = hydra(words)
    refuse_unknown((key for key in given if not is_open(key) or key in HANDLERS), KEYS, LIBRARY)
    settings = Settings(given=given, defaults=DEFAULTS)
    lib = Verl(settings=settings, batch=batch_of(settings), prompts=prompts)
    keys = [*given, *(key for key in matters(lib) if key not in given)]
    said = [(key, KEYS.get(key, _open)(lib, key)) for key in keys]
    return imported(LIBRARY, lib, [*said, *implied(lib)], notes(lib))


def _open(lib: Verl, key: str) -> Said:
    return Said(verdict="no counterpart", why=reason(key))


def notes(lib: Verl) -> list[str]:
    given = lib.settings.given
    found = [
        f"{key} holds a shell variable ({value}): put its value" for key, value in given.items() if _is_unset(value)
    ]
    if f"{MODEL}path" not in given:
        found.append(f"the recipe names no model ({MODEL}path is not given): set model, or it trains the tiny one")
    if "data.train_files" not in given:
        found.append("the recipe names no data (data.train_files is not given): set data.path")
    if not named_function(lib):
        found.append("the recipe names no reward: the data's own is taken, or set [[rewards]]; compute_score fits")
    return found


def _is_unset(value: Any) -> bool:
    return isinstance(value, str) and "$" in value


# ---- the step --------------------------------------------------------------------------------------------------


def _mini_batches(lib: Verl, key: str) -> Said:
    b = lib.batch
    why = (
        b.why
        or f"{b.prompts} prompts / {b.prompts // b.updates} = {plural(b.updates, 'update')} of {b.rows} completions"
    )
    if b.made <= 1 and not lib.is_bypassed:
        why += ": the ratio is 1 and no clip acts"
    return Said(verdict=b.verdict, why=why, sets={"updates_per_step": b.updates})


def _train_batch(lib: Verl, key: str) -> Said:
    b = lib.batch
    why = f"{b.prompts} prompts x {b.group_size} = {b.prompts * b.group_size} completions"
    return Said(verdict="equal", why=why, sets={"prompts_per_step": b.prompts})


def _group_size(lib: Verl, key: str) -> Said:
    value = lib.batch.group_size
    if value == 1:
        return Said(verdict="equal", why="a group of one has nothing to compare with", sets={"group_size": 1})
    return Said(verdict="equal", sets={"group_size": value})


def _micro_batch(lib: Verl, key: str) -> Said:
    if verl_loss.mode_of(lib) == "geo_mean":
        return Said(verdict="no counterpart", why="cut by micro_batch_tokens here; there it scales geo_mean's loss")
    return Said(verdict="no counterpart", why="cut by micro_batch_tokens here, and every cut gives the same update")


def implied(lib: Verl) -> list[tuple[str, Said]]:
    """What follows from no single key of theirs."""
    found = []
    if not lib.is_bypassed and (lib.batch.made > 1 or verl_correction.is_corrected(lib)):
        why = "the trainer scores what was sampled once more before the first update"
        found.append(("(old log-probs)", Said(verdict="equal", why=why, sets={"old_logprobs": "policy"})))
    if lib.batch.updates > 1 and lib.settings.is_on("trainer.balance_batch"):
        why = "verl sorts rows onto devices by length before it cuts the batch (balance_batch); ours keeps groups whole"
        found.append(("(rows of an update)", Said(verdict="different", why=why)))
    return found


HANDLERS: Mapping[str, Handler] = {
    **verl_loss.KEYS,
    **verl_advantage.KEYS,
    **verl_correction.KEYS,
    **verl_schedule.KEYS,
    **verl_run.KEYS,
    BATCH: _train_batch,
    MINI: _mini_batches,
    EPOCHS: same("epochs"),
    N: _group_size,
    f"{ACTOR}ppo_micro_batch_size": _micro_batch,
    f"{ACTOR}ppo_micro_batch_size_per_gpu": _micro_batch,
    f"{ACTOR}use_dynamic_bsz": _micro_batch,
    f"{ACTOR}ppo_max_token_len_per_gpu": _micro_batch,
    f"{ACTOR}shuffle": nothing("mini-batches are whole groups in a random order here"),
    f"{ACTOR}use_rollout_log_probs": nothing(f"see {CORRECTION}bypass_mode"),
    f"{ACTOR}ulysses_sequence_parallel_size": same("ranks.context_parallel"),
    f"{ACTOR}fsdp_config.ulysses_sequence_parallel_size": same("ranks.context_parallel"),
    f"{ACTOR}megatron.tensor_model_parallel_size": same("ranks.tensor_parallel"),
}

KEYS: Mapping[str, Handler] = {**dict.fromkeys(names(), _open), **HANDLERS}
"""Every name of verl's configuration, with its handler."""

DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(KEYS),
    **verl_loss.DEFAULTS,
    **verl_advantage.DEFAULTS,
    **verl_correction.DEFAULTS,
    BATCH: 1024,
    MINI: 256,
    EPOCHS: 1,
    N: 1,
    f"{ACTOR}use_dynamic_bsz": False,
    f"{ACTOR}fsdp_config.dtype": "bfloat16",
    f"{ACTOR}fsdp_config.model_dtype": "fp32",
    f"{OPTIM}optimizer": "AdamW",
    f"{OPTIM}optimizer_impl": "torch.optim",
    f"{OPTIM}lr": 1e-6,
    f"{OPTIM}weight_decay": 0.01,
    f"{OPTIM}betas": [0.9, 0.999],
    f"{OPTIM}clip_grad": 1.0,
    f"{OPTIM}lr_warmup_steps": -1,
    f"{OPTIM}lr_warmup_steps_ratio": 0.0,
    f"{OPTIM}lr_scheduler_type": "constant",
    f"{OPTIM}min_lr_ratio": 0.0,
    f"{OPTIM}num_cycles": 0.5,
    f"{ROLLOUT}temperature": 1.0,
    f"{ROLLOUT}top_p": 1,
    f"{ROLLOUT}top_k": -1,
    f"{ROLLOUT}do_sample": True,
    f"{ROLLOUT}val_kwargs.temperature": 0,
    f"{ROLLOUT}val_kwargs.n": 1,
    f"{ROLLOUT}val_kwargs.do_sample": False,
    f"{MODEL}lora_rank": 0,
    f"{MODEL}lora_alpha": 16,
    f"{MODEL}target_modules": "all-linear",
    "data.max_response_length": 512,
    "data.shuffle": True,
    "algorithm.filter_groups.enable": False,
    "algorithm.filter_groups.metric": "reward",
    "algorithm.filter_groups.max_num_gen_batches": 0,
    "algorithm.filter_groups.max_inflight_gen_batches": 1,
    **{f"{prefix}penalty_factor": 1.0 for prefix in OVERLONG},
    "trainer.total_epochs": 30,
    "trainer.test_freq": -1,
    "trainer.save_freq": -1,
    "trainer.device": "cuda",
    "trainer.balance_batch": True,
    "trainer.v1.trainer_mode": "sync",
    "trainer.critic_warmup": 0,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 8,
    "trainer.use_v1": True,
}


def matters(lib: Verl) -> list[str]:
    """Keys whose default says what their run does, whether or not they were given."""
    keys = [*verl_loss.matters(lib), BATCH, MINI, EPOCHS, N, "data.max_response_length"]
    keys += [f"{ROLLOUT}temperature", f"{ROLLOUT}top_p", f"{ROLLOUT}top_k"]
    keys += [f"{OPTIM}lr", f"{OPTIM}lr_scheduler_type", f"{OPTIM}lr_warmup_steps", f"{OPTIM}weight_decay"]
    keys += [f"{OPTIM}betas", f"{OPTIM}clip_grad", f"{ACTOR}fsdp_config.dtype"]
    if lib.settings.number(f"{MODEL}lora_rank"):
        keys.append(f"{MODEL}lora_alpha")
    if lib.settings["trainer.total_training_steps"] is None:
        keys.append("trainer.total_epochs")
    return keys
