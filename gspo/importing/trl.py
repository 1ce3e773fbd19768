"""TRL 1.16's GRPOConfig, and the model, data and LoRA arguments of its command line, as a recipe of ours.

`KEYS` has one handler per name of theirs. What a handler needs beside its own value it reads from `TRL` (`trl_step`):
the settings over TRL's defaults, and the rollout batch they make. The loss is in `trl_loss`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gspo.importing import trl_loss
from gspo.importing.reading import flags_and_file, refuse_unknown
from gspo.importing.report import (
    Handler,
    Imported,
    Said,
    Settings,
    every_steps,
    imported,
    nothing,
    plural,
    same,
    unless,
)
from gspo.importing.trl_step import TRL, batch_of, updates_of_run

LIBRARY = "TRL 1.16"


def import_trl(words: Sequence[str], *, world_size: int = 1, prompts: int = 0) -> Imported:
    """["config.yaml", "--beta", "0"] -> recipe and report. `prompts`: rows of the data, for runs counted in epochs."""
    given = _negated(flags_and_file(words, LISTS))
    refuse_unknown(given, KEYS, LIBRARY)
    settings = Settings(given=given, defaults=DEFAULTS)
    lib = TRL(settings=settings, batch=batch_of(settings, world_size), prompts=prompts)
    keys = [*given, *(key for key in matters(lib) if key not in given)]
    said = [(key, KEYS[key](lib, key)) for key in keys]
    return imported(LIBRARY, lib, [*said, *implied(lib)], notes(lib, world_size))


def _negated(given: Mapping[str, Any]) -> dict[str, Any]:
    """--no_shuffle_dataset, as TRL's command line has it for what is on by default."""
    is_negation = lambda key, value: key.startswith("no_") and key[3:] in KEYS and value is True  # noqa: E731
    return dict((key[3:], False) if is_negation(key, value) else (key, value) for key, value in given.items())


def notes(lib: TRL, world_size: int) -> list[str]:
    found = [f"processes: {world_size}" + ("" if world_size > 1 else " (--world-size N for more)")]
    if "model_name_or_path" not in lib.settings.given:
        found.append("the recipe names no model (GRPOTrainer gets it in Python): set model, or it trains the tiny one")
    if "dataset_name" not in lib.settings.given:
        found.append("the recipe names no data and no rewards: set data.path and [[rewards]]; TRL's functions fit")
    return found


# ---- the step --------------------------------------------------------------------------------------------------


def _per_device(lib: TRL, key: str) -> Said:
    b = lib.batch
    why = f"{b.prompts * b.group_size} completions in a rollout batch = {plural(b.prompts, 'prompt')} x {b.group_size}"
    return Said(verdict="equal", why=why, sets={"prompts_per_step": b.prompts})


def _updates(lib: TRL, key: str) -> Said:
    """Of steps_per_generation, generation_batch_size and gradient_accumulation_steps alike."""
    b, s = lib.batch, lib.settings
    why = b.why or f"{plural(b.updates, 'update')} of {b.rows} completions per rollout batch"
    if b.made <= 1:
        why += ": the ratio is 1 and no clip acts"
    if key == "gradient_accumulation_steps":
        why = f"micro-batches are cut by micro_batch_tokens here; {why}"
    if s[key] is None:
        why = f"gradient_accumulation_steps is taken; {why}"
    return Said(verdict=b.verdict, why=why, sets={"updates_per_step": b.updates})


def _num_iterations(lib: TRL, key: str) -> Said:
    b = lib.batch
    if b.verdict == "different" and b.epochs > 1:
        return Said(verdict="different", why=b.why, sets={"epochs": b.epochs})
    return Said(verdict="equal", sets={"epochs": b.epochs})


def implied(lib: TRL) -> list[tuple[str, Said]]:
    """What follows from no single key of theirs."""
    found = []
    if lib.batch.made > 1 or lib.is_engine_corrected:
        why = "the trainer scores what was sampled once more before the first update"
        found.append(("(old log-probs)", Said(verdict="equal", why=why, sets={"old_logprobs": "policy"})))
    if lib.batch.updates > 1:
        why = "TRL shuffles the completions of a generation batch before cutting it; ours keeps groups whole"
        found.append(("(rows of an update)", Said(verdict="different", why=why)))
    return found


# ---- length of the run, learning rate ----------------------------------------------------------------------------


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


# ---- sampling, data, model ---------------------------------------------------------------------------------------


def _max_completion_length(lib: TRL, key: str) -> Said:
    if lib.settings[key] is None:
        return Said(verdict="different", why="completions have a limit here: set sampling.max_completion_tokens")
    return Said(verdict="equal", sets={"sampling.max_completion_tokens": lib.settings.count(key)})


def _temperature(lib: TRL, key: str) -> Said:
    return Said(
        verdict="equal",
        why="logits are divided by it for sampling and for scoring",
        sets={"sampling.temperature": lib.settings[key]},
    )


def _truncation(name: str, off: float) -> Handler:
    """top_p and top_k: ours scores under the truncated distribution, theirs under the whole one."""

    def handler(lib: TRL, key: str) -> Said:
        value = lib.settings[key]
        sets = {f"sampling.{name}": value or off}
        if (value or off) == off:
            return Said(verdict="equal", why="off", sets=sets)
        why = "sampled alike; theirs scores under the whole distribution, ours under the truncated one that was sampled"
        return Said(verdict="different", why=why, sets=sets)

    return handler


def _truncated(lib: TRL, key: str) -> Said:
    why = "rows cut by the token limit count as rows and train nothing" if lib.settings.is_on(key) else ""
    return Said(verdict="equal", why=why, sets={"collector.drop_truncated": lib.settings.is_on(key)})


def _bf16(lib: TRL, key: str) -> Said:
    value = not lib.settings.is_on("fp16") if lib.settings[key] is None else lib.settings.is_on(key)
    if value:
        why = "theirs is autocast over float32 weights; here the network is bfloat16 with float32 masters"
        return Said(verdict="different", why=why, sets={"dtype": "bfloat16"})
    if lib.settings.is_on("fp16"):
        return Said(verdict="equal", why="fp16 is on instead")
    return Said(verdict="equal", sets={"dtype": "float32"})


def _fp16(lib: TRL, key: str) -> Said:
    if not lib.settings.is_on(key):
        return Said(verdict="equal", why="off")
    why = "theirs is autocast with loss scaling; here the network is float16 with float32 masters and no scaling"
    return Said(verdict="different", why=why, sets={"dtype": "float16"})


def _seed(lib: TRL, key: str) -> Said:
    why = "the same number starts other streams: order of the data and samples are not theirs"
    return Said(verdict="different", why=why, sets={"seed": lib.settings[key]})


def _use_cpu(lib: TRL, key: str) -> Said:
    return Said(verdict="equal", sets={"device": "cpu"} if lib.settings.is_on(key) else {})


def _shuffle(lib: TRL, key: str) -> Said:
    if lib.settings.is_on(key):
        return Said(verdict="equal", why="always, here")
    return Said(verdict="different", why="the order of the data is a fresh permutation in every epoch here")


def _dropout(lib: TRL, key: str) -> Said:
    is_off = lib.settings.is_on(key)
    return Said(verdict="equal" if is_off else "different", why="the policy is trained without dropout here")


def _use_vllm(lib: TRL, key: str) -> Said:
    if not lib.settings.is_on(key):
        return Said(verdict="equal", why="the policy samples in its own process")
    return Said(
        verdict="no counterpart", why="the policy samples in its own process, with hardly a mismatch to correct"
    )


def _log_completions(lib: TRL, key: str) -> Said:
    return Said(
        verdict="equal" if lib.settings.is_on(key) else "different",
        why="every rollout is saved and one is shown at each step",
        ours="checkpoints.save_rollouts_every = 1",
    )


def _report_to(lib: TRL, key: str) -> Said:
    value = lib.settings[key]
    wanted = [] if value in ("none", None) else value if isinstance(value, list) else [value]
    ours = [name for name in wanted if name in ("tensorboard", "wandb", "trackio")]
    missing = ", ".join(str(name) for name in wanted if name not in ours)
    why = f"{missing} is not here" if missing else ""
    return Said(verdict="no counterpart" if missing else "equal", why=why, sets={"trackers": ours})


def _saving(lib: TRL, key: str) -> Said:
    if lib.settings["save_strategy"] not in ("steps", None):
        return Said(verdict="no counterpart", why="save_strategy says otherwise")
    return every_steps(lib.settings[key], lib.batch.made, "checkpoints.every")


def _evaluating(lib: TRL, key: str) -> Said:
    """eval_strategy and eval_steps."""
    strategy, steps = lib.settings["eval_strategy"], lib.settings["eval_steps"]
    if strategy in ("no", False) and key == "eval_strategy":
        return Said(verdict="different", why="ours evaluates before and after", sets={"evaluation.every": 0})
    if strategy == "steps" and steps is not None:
        return every_steps(steps, lib.batch.made, "evaluation.every")
    return Said(verdict="different", why="evaluation.every counts steps")


def _num_generations_eval(lib: TRL, key: str) -> Said:
    value = lib.settings[key] or lib.settings["num_generations"]
    sets = {"evaluation.samples": value, "evaluation.temperature": lib.settings["temperature"]}
    return Said(verdict="equal", why="sampled at the training temperature", sets=sets)


def _save_strategy(lib: TRL, key: str) -> Said:
    if lib.settings[key] == "steps":
        return Said(verdict="equal")
    return Said(verdict="different", why="a checkpoint every checkpoints.every steps, and one at the end")


def _keep(lib: TRL, key: str) -> Said:
    if lib.settings[key] is None:
        return Said(verdict="different", why="checkpoints.keep newest are kept here")
    return Said(verdict="equal", sets={"checkpoints.keep": lib.settings[key]})


def _peft(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Handler:
    def handler(lib: TRL, key: str) -> Said:
        if not lib.settings.is_on("use_peft"):
            return Said(verdict="no counterpart", why="use_peft is off")
        return Said(verdict="equal", sets={name: convert(lib.settings[key])})

    return handler


def _use_peft(lib: TRL, key: str) -> Said:
    if lib.settings.is_on(key):
        return Said(verdict="equal", sets={"lora.rank": lib.settings.count("lora_r")})
    return Said(verdict="equal", why="all weights are trained")


def _lora_targets(lib: TRL, key: str) -> Said:
    value = lib.settings[key]
    if not lib.settings.is_on("use_peft"):
        return Said(verdict="no counterpart", why="use_peft is off")
    if value is None:
        return Said(verdict="different", why="peft picks some layers by architecture; ours takes every linear layer")
    if value in ("all-linear", ["all-linear"]):
        return Said(verdict="equal", why="every linear layer but the head", sets={"lora.targets": []})
    return Said(verdict="equal", sets={"lora.targets": value if isinstance(value, list) else [value]})


def _lora_dropout(lib: TRL, key: str) -> Said:
    if not lib.settings.is_on("use_peft"):
        return Said(verdict="no counterpart", why="use_peft is off")
    is_off = not lib.settings[key]
    return Said(verdict="equal" if is_off else "different", why="" if is_off else "adapters have no dropout here")


def _split(name: str) -> Handler:
    def handler(lib: TRL, key: str) -> Said:
        if lib.settings["dataset_name"] is None:
            return Said(verdict="no counterpart", why="no dataset_name")
        return Said(verdict="equal", sets={name: lib.settings[key]})

    return handler


# ---- the table ---------------------------------------------------------------------------------------------------

NOWHERE = {
    "log-softmax and loss are float32 here; the head computes in dtype": "cast_lm_head_to_fp32",
    "the model is loaded as it is": "model_init_kwargs trust_remote_code model_revision attn_implementation",
    "masters are float32 and dtype says what computes": (
        "dtype tf32 bf16_full_eval fp16_full_eval half_precision_backend"
    ),
    "quantised weights are not trained here": (
        "load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage"
    ),
    "plain LoRA only": "lora_target_parameters lora_modules_to_save use_rslora use_dora lora_task_type",
    "there is no load-balancing loss": "router_aux_loss_coef",
    "columns of the data all reach the rewards": "remove_unused_columns label_names",
    "memory is bounded by micro_batch_tokens": (
        "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs "
        "torch_empty_cache_steps auto_find_batch_size per_device_eval_batch_size eval_accumulation_steps "
        "pad_to_multiple_of use_cache skip_memory_metrics"
    ),
    "one process on one device": (
        "ds3_gather_for_generation deepspeed fsdp fsdp_config parallelism_config accelerator_config local_rank "
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
        "average_tokens_across_devices log_on_each_node save_on_each_node fsdp_transformer_layer_cls_to_wrap "
        "fsdp_min_num_params full_determinism"
    ),
    "no engine: the policy samples in its own process": (
        "vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url "
        "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
        "vllm_max_model_length vllm_tensor_parallel_size use_transformers_continuous_batching "
        "transformers_continuous_batching_config use_transformers_paged cache_implementation"
    ),
    "kernels are torch's": (
        "use_liger_kernel liger_kernel_config torch_compile torch_compile_backend torch_compile_mode jit_mode_eval"
    ),
    "further arguments of the chat template are not passed": "chat_template_kwargs",
    "no tools": "max_tool_calling_iterations",
    "text only": "log_multimodal",
    "data is read into memory, in order of a counter": (
        "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy "
        "length_column_name ignore_data_skip dataset_streaming group_by_length data_seed"
    ),
    "give a folder or a file as data.path": "dataset_config datasets",
    "rewards are functions: [[rewards]] function = 'file.py:name' takes TRL's signature": (
        "reward_funcs reward_model_name_or_path"
    ),
    "metrics of every step are written": (
        "logging_strategy logging_steps logging_first_step logging_nan_inf_filter include_num_input_tokens_seen "
        "log_level log_level_replica disable_tqdm num_completions_to_print log_unique_prompts logging_dir "
        "include_tokens_per_second include_for_metrics batch_eval_metrics prediction_loss_only debug"
    ),
    "trackers keep their own settings": "project trackio_space_id trackio_bucket_id trackio_static_space_id",
    "nothing is uploaded": (
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
        "log_completions_hub_repo"
    ),
    "evaluation.every counts steps, and it runs before and after": (
        "eval_delay eval_on_start eval_do_concat_batches eval_use_gather_object do_train do_eval do_predict"
    ),
    "checkpoints are whole; the best policy by held-out accuracy is kept beside them": (
        "save_only_model enable_jit_checkpoint load_best_model_at_end metric_for_best_model greater_is_better "
        "save_safetensors restore_callback_states_from_checkpoint overwrite_output_dir"
    ),
    "gspo resume RUN goes on": "resume_from_checkpoint",
    "AdamW has no further arguments here": "optim_args optim_target_modules",
    "not read by the GRPO trainer": "label_smoothing_factor ignore_bias_buffers",
    "no noise on embeddings": "neftune_noise_alpha",
    "set variables in the shell": "env",
}

KEYS = {
    **{key: nothing(why) for why, keys in NOWHERE.items() for key in keys.split()},
    **trl_loss.KEYS,
    "per_device_train_batch_size": _per_device,
    "generation_batch_size": _updates,
    "steps_per_generation": _updates,
    "gradient_accumulation_steps": _updates,
    "num_iterations": _num_iterations,
    "num_generations": same("group_size"),
    "num_generations_eval": _num_generations_eval,
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
    "max_completion_length": _max_completion_length,
    "temperature": _temperature,
    "top_p": _truncation("top_p", 1.0),
    "top_k": _truncation("top_k", 0),
    "min_p": unless(None, "min-p sampling is not here"),
    "repetition_penalty": unless(1.0, "not here; it changes what is sampled and not what is scored"),
    "generation_kwargs": unless(None, "sampling has temperature, top_p, top_k and max_completion_tokens"),
    "mask_truncated_completions": _truncated,
    "shuffle_dataset": _shuffle,
    "disable_dropout": _dropout,
    "bf16": _bf16,
    "fp16": _fp16,
    "seed": _seed,
    "use_cpu": _use_cpu,
    "use_vllm": _use_vllm,
    "log_completions": _log_completions,
    "report_to": _report_to,
    "run_name": same("name"),
    "output_dir": same("folder"),
    "save_strategy": _save_strategy,
    "save_steps": _saving,
    "save_total_limit": _keep,
    "eval_strategy": _evaluating,
    "eval_steps": _evaluating,
    "model_name_or_path": same("model"),
    "use_peft": _use_peft,
    "lora_r": _peft("lora.rank"),
    "lora_alpha": _peft("lora.alpha", float),
    "lora_target_modules": _lora_targets,
    "lora_dropout": _lora_dropout,
    "dataset_name": same("data.path", why="TRL's columns are read as they are"),
    "dataset_train_split": _split("data.split"),
    "dataset_test_split": _split("data.held_out_split"),
}
"""Every name of GRPOConfig and of the command line beside it, with its handler. TRL 1.16 runs on transformers 4.56 and
later, so a few names that only transformers 4 has are here too."""

DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(KEYS),
    **trl_loss.DEFAULTS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_iterations": 1,
    "num_generations": 8,
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "warmup_ratio": 0.0,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "max_completion_length": 512,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "mask_truncated_completions": False,
    "shuffle_dataset": True,
    "disable_dropout": False,
    "fp16": False,
    "seed": 42,
    "use_cpu": False,
    "use_vllm": False,
    "log_completions": False,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 500,
    "eval_strategy": "no",
    "use_peft": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
}

LISTS = ("reward_weights", "report_to", "lora_target_modules", "reward_funcs", "lora_modules_to_save")
"""Arguments of several words on a command line."""

SCHEDULES = (
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
    "cosine_with_restarts", "reduce_lr_on_plateau", "warmup_stable_decay", "cosine_warmup_with_min_lr", "greedy",
)  # fmt: skip


def matters(lib: TRL) -> list[str]:
    """Keys whose default says what their run does, whether or not they were given."""
    keys = [*trl_loss.matters(lib), "num_generations", "per_device_train_batch_size"]
    if lib.settings["generation_batch_size"] is None:
        keys.append("steps_per_generation")
    keys += ["num_iterations", "max_completion_length", "temperature", "top_p", "top_k", "mask_truncated_completions"]
    keys += ["learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"]
    keys += ["adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16"]
    if lib.settings.number("max_steps") <= 0:
        keys.append("num_train_epochs")
    if lib.settings.is_on("use_peft"):
        keys += ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"]
    return keys
