"""TRL 1.16's GRPOConfig, and the model, data and LoRA arguments of its command line, as a recipe of ours.

`KEYS` has one handler per name of theirs. What a handler needs beside its own value it reads from `TRL` (`trl_step`):
the settings over TRL's defaults, and the rollout batch they make. The loss is in `trl_loss`, the learning rate in
`trl_schedule`, sampling, data and model in `trl_run`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gspo.importing import trl_loss, trl_run, trl_schedule
from gspo.importing.reading import flags_and_file, refuse_unknown
from gspo.importing.report import (
    Imported,
    Said,
    Settings,
    imported,
    nothing,
    plural,
    same,
)
from gspo.importing.trl_step import TRL, batch_of

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
    **trl_schedule.KEYS,
    **trl_run.KEYS,
    "per_device_train_batch_size": _per_device,
    "generation_batch_size": _updates,
    "steps_per_generation": _updates,
    "gradient_accumulation_steps": _updates,
    "num_iterations": _num_iterations,
    "num_generations": same("group_size"),
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
