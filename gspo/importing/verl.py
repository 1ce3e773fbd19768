"""verl 0.9.1's Hydra overrides as a recipe of ours.

`KEYS` has the handlers; `verl_keys` lists every other name of verl's configuration, with the reason why nothing here
answers to it. What a handler needs beside its own value it reads from `Verl` (`verl_step`): the settings over verl's
defaults, and the rollout batch they make. The loss is in `verl_loss`,
advantages and corrections in files of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gspo.importing import verl_advantage, verl_correction, verl_loss
from gspo.importing.reading import hydra, refuse_unknown
from gspo.importing.report import Handler, Imported, Said, Settings, imported, nothing, plural, same
from gspo.importing.verl_keys import is_open, names, reason
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
    if not _function(lib):
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


# ---- length of the run, learning rate ----------------------------------------------------------------------------


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


# ---- sampling, data, model, reward -------------------------------------------------------------------------------


def _top_k(lib: Verl, key: str) -> Said:
    value = lib.settings.number(key)
    return _truncated("top_k", 0, max(int(value), 0))


def _top_p(lib: Verl, key: str) -> Said:
    return _truncated("top_p", 1.0, float(lib.settings.number(key)))


def _truncated(name: str, off: float, value: float) -> Said:
    if value == off:
        return Said(verdict="equal", why="off", sets={f"sampling.{name}": value})
    why = "sampled alike; theirs scores under the whole distribution, ours under the truncated one that was sampled"
    return Said(verdict="different", why=why, sets={f"sampling.{name}": value})


def _do_sample(lib: Verl, key: str) -> Said:
    if lib.settings.is_on(key):
        return Said(verdict="equal")
    return Said(verdict="different", why="greedy completions of a group would all be the same; ours samples")


def _validation(lib: Verl, key: str) -> Said:
    s = lib.settings
    if not s.is_on(f"{ROLLOUT}val_kwargs.do_sample"):
        return Said(verdict="equal", why="greedy", sets={"evaluation.temperature": 0.0})
    sets = {
        "evaluation.temperature": float(s.number(f"{ROLLOUT}val_kwargs.temperature")),
        "evaluation.samples": s.count(f"{ROLLOUT}val_kwargs.n"),
    }
    return Said(verdict="equal", why="on as many held-out problems as evaluation.prompts", sets=sets)


def _dtype(lib: Verl, key: str) -> Said:
    known = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16"}
    dtype = known.get(lib.settings[key], "float32")
    return Said(verdict="equal", why="what computes; weights are float32 in both", sets={"dtype": dtype})


def _model_dtype(lib: Verl, key: str) -> Said:
    is_full = lib.settings[key] in ("fp32", "float32")
    return Said(verdict="equal" if is_full else "different", why="master weights are float32 here")


def _file(name: str) -> Handler:
    def handler(lib: Verl, key: str) -> Said:
        value = lib.settings[key]
        files = value if isinstance(value, list) else [value]
        if len(files) != 1:
            return Said(verdict="different", why="one file or folder here: put the files into a folder")
        return Said(verdict="equal", why="verl's columns are read as they are", sets={name: files[0]})

    return handler


def _val_files(lib: Verl, key: str) -> Said:
    if "data.train_files" not in lib.settings.given:
        return Said(verdict="no counterpart", why="read with data.train_files alone")
    return _file("data.held_out_path")(lib, key)


def _prompt_key(lib: Verl, key: str) -> Said:
    if "data.train_files" not in lib.settings.given:
        return Said(verdict="no counterpart", why="read with data.train_files alone")
    return Said(verdict="equal", sets={"data.prompt_column": lib.settings[key]})


def _data_shuffle(lib: Verl, key: str) -> Said:
    is_on = lib.settings.is_on(key)
    return Said(verdict="equal" if is_on else "different", why="a fresh permutation in every epoch here")


def _seed(lib: Verl, key: str) -> Said:
    if lib.settings[key] is None:
        return Said(verdict="different", why="no seed there; every run has one here")
    why = "the same number starts other streams: order of the data and samples are not theirs"
    return Said(verdict="different", why=why, sets={"seed": lib.settings.count(key)})


def _filter_groups(lib: Verl, key: str) -> Said:
    s = lib.settings
    if not s.is_on(key):
        return Said(verdict="equal", why="off", sets={"collector.refill": False})
    metric = s["algorithm.filter_groups.metric"]
    why = "theirs draws prompts until the batch is full; ours in waves, at most collector.max_rounds of them"
    why += "" if metric == "reward" else f", by the spread of the reward and not of {metric}"
    return Said(verdict="different", why=why, sets={"collector.refill": True})


def _filter_detail(lib: Verl, key: str) -> Said:
    if not lib.settings.is_on("algorithm.filter_groups.enable"):
        return Said(verdict="no counterpart", why="filter_groups.enable is off")
    if key.endswith("metric"):
        return Said(verdict="equal", why="see filter_groups.enable")
    rounds = lib.settings.number(key)
    if key.endswith("max_num_gen_batches") and rounds > 0:
        why = "waves after which ours goes on with what it has; verl's trainer since 0.9 ignores it"
        return Said(verdict="different", why=why, sets={"collector.max_rounds": int(rounds)})
    return Said(verdict="no counterpart", why="waves of prompts_per_step are drawn one after the other")


def _function(lib: Verl) -> str:
    """file.py:function of the user's reward; nothing where none is named."""
    s = lib.settings
    for prefix in ("reward.custom_reward_function.", "custom_reward_function."):
        if s[f"{prefix}path"] is not None:
            return f"{s[f'{prefix}path']}:{s[f'{prefix}name'] or 'compute_score'}"
    return ""


def _reward_function(lib: Verl, key: str) -> Said:
    if not _function(lib):
        return Said(verdict="no counterpart", why="no path")
    if key.endswith("name"):
        return Said(verdict="equal", ours="rewards.0.function")
    why = "called with verl's arguments"
    return Said(verdict="equal", why=why, adds={"rewards": {"function": _function(lib)}})


def _overlong(lib: Verl, key: str) -> Said:
    s, prefix = lib.settings, key.removesuffix("enable")
    if not s.is_on(key):
        return Said(verdict="equal", why="off")
    limit = f"{prefix.removesuffix('overlong_buffer_cfg.')}max_resp_len"
    limit = "data.max_response_length" if s[limit] is None else limit
    options = {"max_tokens": s.count(limit), "buffer_tokens": s.count(f"{prefix}len")}
    reward = {"name": "overlong", "weight": float(s.number(f"{prefix}penalty_factor")), "options": options}
    if _function(lib):
        return Said(verdict="equal", why="DAPO's soft overlong punishment", adds={"rewards": reward})
    text = f"[[rewards]] overlong, weight {reward['weight']:g}, {options}"
    why = "not written: [[rewards]] replace the data's own reward, and the recipe names none beside it"
    return Said(verdict="different", why=why, ours=text)


def _overlong_detail(lib: Verl, key: str) -> Said:
    return Said(verdict="equal", why="see overlong_buffer_cfg.enable")


def _lora_rank(lib: Verl, key: str) -> Said:
    return Said(verdict="equal", sets={"lora.rank": int(lib.settings.number(key))})


def _lora_alpha(lib: Verl, key: str) -> Said:
    if not lib.settings.number(f"{MODEL}lora_rank"):
        return Said(verdict="no counterpart", why="lora_rank is 0")
    return Said(verdict="equal", sets={"lora.alpha": float(lib.settings.number(key))})


def _lora_targets(lib: Verl, key: str) -> Said:
    value = lib.settings[key]
    if not lib.settings.number(f"{MODEL}lora_rank"):
        return Said(verdict="no counterpart", why="lora_rank is 0")
    if value == "all-linear":
        return Said(verdict="equal", why="every linear layer but the head", sets={"lora.targets": []})
    return Said(verdict="equal", sets={"lora.targets": value if isinstance(value, list) else [value]})


# ---- the run -----------------------------------------------------------------------------------------------------


def _test_freq(lib: Verl, key: str) -> Said:
    value = lib.settings.number(key)
    if value > 0:
        return Said(verdict="equal", sets={"evaluation.every": int(value)})
    return Said(verdict="different", why="ours evaluates before and after", sets={"evaluation.every": 0})


def _save_freq(lib: Verl, key: str) -> Said:
    value = lib.settings.number(key)
    if value > 0:
        return Said(verdict="equal", sets={"checkpoints.every": int(value)})
    return Said(verdict="different", why="a checkpoint every checkpoints.every steps, and one at the end")


def _keep(lib: Verl, key: str) -> Said:
    if lib.settings[key] is None:
        return Said(verdict="different", why="checkpoints.keep newest are kept here")
    return Said(verdict="equal", sets={"checkpoints.keep": lib.settings.count(key)})


def _logger(lib: Verl, key: str) -> Said:
    value = lib.settings[key]
    wanted = [name for name in (value if isinstance(value, list) else [value]) if name not in ("console", None)]
    ours = [name for name in wanted if name in ("tensorboard", "wandb", "trackio")]
    missing = ", ".join(str(name) for name in wanted if name not in ours)
    why = f"{missing} is not here" if missing else "and the console, always"
    return Said(verdict="no counterpart" if missing else "equal", why=why, sets={"trackers": ours})


def _device(lib: Verl, key: str) -> Said:
    if lib.settings[key] in ("cuda", "cpu"):
        return Said(verdict="equal", sets={"device": lib.settings[key]})
    return Said(verdict="no counterpart", why="devices here: cpu, cuda, mps")


def _critic_warmup(lib: Verl, key: str) -> Said:
    if not lib.settings.number(key):
        return Said(verdict="equal", why="none")
    return Said(verdict="different", why="no critic; the policy is trained from the first step")


def _trainer_mode(lib: Verl, key: str) -> Said:
    if lib.settings[key] == "sync":
        return Said(verdict="equal", why="sampling and training take turns")
    return Said(verdict="different", why="sampling and training take turns here; nothing is sampled by older weights")


def _saved(lib: Verl, key: str) -> Said:
    return Said(verdict="equal", why="every rollout is saved, and one is shown at each step")


OVERLONG = [f"{prefix}.reward_kwargs.overlong_buffer_cfg." for prefix in ("reward", "reward_model")]
FUNCTIONS = ("reward.custom_reward_function.", "custom_reward_function.")

HANDLERS: Mapping[str, Handler] = {
    **verl_loss.KEYS,
    **verl_advantage.KEYS,
    **verl_correction.KEYS,
    BATCH: _train_batch,
    MINI: _mini_batches,
    EPOCHS: same("epochs"),
    N: _group_size,
    f"{ACTOR}ppo_micro_batch_size": _micro_batch,
    f"{ACTOR}ppo_micro_batch_size_per_gpu": _micro_batch,
    f"{ACTOR}use_dynamic_bsz": _micro_batch,
    f"{ACTOR}ppo_max_token_len_per_gpu": _micro_batch,
    f"{ACTOR}grad_clip": _grad_clip,
    f"{ACTOR}shuffle": nothing("mini-batches are whole groups in a random order here"),
    f"{ACTOR}use_rollout_log_probs": nothing(f"see {CORRECTION}bypass_mode"),
    f"{ACTOR}fsdp_config.dtype": _dtype,
    f"{ACTOR}fsdp_config.model_dtype": _model_dtype,
    f"{ACTOR}ulysses_sequence_parallel_size": same("ranks.context_parallel"),
    f"{ACTOR}fsdp_config.ulysses_sequence_parallel_size": same("ranks.context_parallel"),
    f"{ACTOR}megatron.tensor_model_parallel_size": same("ranks.tensor_parallel"),
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
    f"{ROLLOUT}temperature": same("sampling.temperature", why="logits are divided by it for sampling and scoring"),
    f"{ROLLOUT}top_p": _top_p,
    f"{ROLLOUT}top_k": _top_k,
    f"{ROLLOUT}do_sample": _do_sample,
    f"{ROLLOUT}calculate_log_probs": nothing("the sampler's log-probs are always known here"),
    f"{ROLLOUT}response_length": nothing("data.max_response_length counts"),
    f"{ROLLOUT}prompt_length": nothing("prompts are never cut"),
    f"{ROLLOUT}val_kwargs.temperature": _validation,
    f"{ROLLOUT}val_kwargs.n": _validation,
    f"{ROLLOUT}val_kwargs.do_sample": _validation,
    f"{MODEL}path": same("model"),
    f"{MODEL}enable_gradient_checkpointing": nothing("memory is bounded by micro_batch_tokens"),
    f"{MODEL}lora_rank": _lora_rank,
    f"{MODEL}lora_alpha": _lora_alpha,
    f"{MODEL}target_modules": _lora_targets,
    "data.max_response_length": same("sampling.max_completion_tokens"),
    "data.train_files": _file("data.path"),
    "data.val_files": _val_files,
    "data.prompt_key": _prompt_key,
    "data.gen_batch_size": nothing("waves of prompts_per_step are drawn"),
    "data.shuffle": _data_shuffle,
    "data.seed": _seed,
    "algorithm.filter_groups.enable": _filter_groups,
    "algorithm.filter_groups.metric": _filter_detail,
    "algorithm.filter_groups.max_num_gen_batches": _filter_detail,
    "algorithm.filter_groups.max_inflight_gen_batches": _filter_detail,
    **{f"{prefix}{name}": _reward_function for prefix in FUNCTIONS for name in ("path", "name")},
    **{f"{prefix}enable": _overlong for prefix in OVERLONG},
    **{f"{prefix}{name}": _overlong_detail for prefix in OVERLONG for name in ("len", "penalty_factor", "log")},
    **{f"{prefix}.reward_kwargs.max_resp_len": _overlong_detail for prefix in ("reward", "reward_model")},
    "trainer.total_training_steps": _total_steps,
    "trainer.total_epochs": _epochs,
    "trainer.test_freq": _test_freq,
    "trainer.val_before_train": nothing("ours always evaluates before and after"),
    "trainer.save_freq": _save_freq,
    "trainer.max_actor_ckpt_to_keep": _keep,
    "trainer.logger": _logger,
    "trainer.experiment_name": same("name"),
    "trainer.project_name": nothing("trackers keep their own settings"),
    "trainer.default_local_dir": same("folder"),
    "trainer.device": _device,
    "trainer.critic_warmup": _critic_warmup,
    "trainer.v1.trainer_mode": _trainer_mode,
    "trainer.log_val_generations": _saved,
    "trainer.rollout_data_dir": _saved,
    "trainer.validation_data_dir": _saved,
    "trainer.resume_mode": nothing("gspo resume RUN goes on"),
    "trainer.resume_from_path": nothing("gspo resume RUN goes on"),
    "trainer.use_v1": nothing("which of verl's trainers runs; it decides what bypass_mode does"),
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
