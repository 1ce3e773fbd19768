"""Sampling, data, model, adapters, logging and saving of a run of TRL, as settings of ours."""

from collections.abc import Callable
from typing import Any

from gspo.importing.report import Handler, Said, every_steps, same, unless
from gspo.importing.trl_step import TRL


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


KEYS = {
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
    "num_generations_eval": _num_generations_eval,
}
