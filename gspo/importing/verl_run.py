"""Sampling, data, rewards, model, adapters, logging and saving of a run of verl, as settings of ours."""

from collections.abc import Mapping

from gspo.importing.report import Handler, Said, nothing, same
from gspo.importing.verl_step import ACTOR, MODEL, ROLLOUT, Verl


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


def named_function(lib: Verl) -> str:
    """file.py:function of the user's reward; nothing where none is named."""
    s = lib.settings
    for prefix in ("reward.custom_reward_function.", "custom_reward_function."):
        if s[f"{prefix}path"] is not None:
            return f"{s[f'{prefix}path']}:{s[f'{prefix}name'] or 'compute_score'}"
    return ""


def _reward_function(lib: Verl, key: str) -> Said:
    if not named_function(lib):
        return Said(verdict="no counterpart", why="no path")
    if key.endswith("name"):
        return Said(verdict="equal", ours="rewards.0.function")
    why = "called with verl's arguments"
    return Said(verdict="equal", why=why, adds={"rewards": {"function": named_function(lib)}})


def _overlong(lib: Verl, key: str) -> Said:
    s, prefix = lib.settings, key.removesuffix("enable")
    if not s.is_on(key):
        return Said(verdict="equal", why="off")
    limit = f"{prefix.removesuffix('overlong_buffer_cfg.')}max_resp_len"
    limit = "data.max_response_length" if s[limit] is None else limit
    options = {"max_tokens": s.count(limit), "buffer_tokens": s.count(f"{prefix}len")}
    reward = {"name": "overlong", "weight": float(s.number(f"{prefix}penalty_factor")), "options": options}
    if named_function(lib):
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

KEYS: Mapping[str, Handler] = {
    f"{ACTOR}fsdp_config.dtype": _dtype,
    f"{ACTOR}fsdp_config.model_dtype": _model_dtype,
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
