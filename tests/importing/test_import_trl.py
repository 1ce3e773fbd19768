"""TRL's settings as ours: what is written, what is said of each line, and the arithmetic behind it."""

import re
from pathlib import Path

import pytest

import gspo
from gspo.corrections import OPSM, IcePop, SequenceMask, SequenceTIS, TokenMask, TokenTIS, TopEntropy
from gspo.importing import import_trl
from gspo.importing.trl import DEFAULTS, KEYS, LIBRARY
from gspo.requirements import unmet
from gspo.settings import load_config

DATA = Path(__file__).parent / "data"


def given(**settings):
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return words


def trl(world_size=1, prompts=0, **settings):
    return import_trl(given(**settings), world_size=world_size, prompts=prompts)


def line(result, key):
    (found,) = [line for line in result.lines if line.key == key]
    return found


def said(key, **settings):
    found = line(trl(**settings), key)
    return found.verdict, found.why


def test_the_published_gspo_settings_are_gspo(tmp_path):
    result = import_trl([str(DATA / "trl_gspo.yaml")])
    config = result.config
    assert config.objective == gspo.GSPO(clip_low=3e-4, clip_high=4e-4)
    assert (config.updates_per_step, config.epochs, config.terms, config.corrections) == (4, 1, (), ())
    assert config.prompts_per_step * config.group_size == 32 and config.old_logprobs == "policy"
    loss = ("importance_sampling_level", "loss_type", "beta", "epsilon", "epsilon_high", "scale_rewards")
    assert {result.verdicts()[key] for key in (*loss, "steps_per_generation")} == {"equal"}
    path = tmp_path / "recipe.toml"
    path.write_text(result.toml())
    assert load_config(path) == config


def test_a_number_without_a_dot_is_a_number_in_yaml_and_json(tmp_path):
    for name, text in (("c.yaml", "learning_rate: 1e-6\nseed: 7\n"), ("c.json", '{"learning_rate": 1e-6, "seed": 7}')):
        path = tmp_path / name
        path.write_text(text)
        config = import_trl([str(path)]).config
        assert config.optimizer.lr == 1e-6 and config.seed == 7


def test_flags_win_over_the_file():
    result = import_trl([str(DATA / "trl_gspo.yaml"), "--epsilon", "2e-4", "--bf16", "--no_such_thing=1"][:4])
    assert result.config.objective.clip_low == 2e-4 and result.config.dtype == "bfloat16"
    again = import_trl(["--config", str(DATA / "trl_gspo.yaml"), "--epsilon=2e-4"])
    assert again.config.objective == result.config.objective


def test_words_of_trls_command_line():
    assert said("shuffle_dataset", shuffle_dataset=False) == said_of(["--no_shuffle_dataset"], "shuffle_dataset")
    assert line(import_trl(["--bf16", "--use_cpu", "false"]), "bf16").theirs == "true"
    assert import_trl(["--report_to", "wandb"]).config.trackers == ("wandb",)
    assert import_trl(["--reward_weights", "[1, 2]", "--seed", "1"]).config.seed == 1
    assert import_trl(["--seed", "1"]).config.name == "from-trl"


def said_of(words, key):
    found = line(import_trl(words), key)
    return found.verdict, found.why


# ---- the loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "dr_grpo"])
def test_the_sequence_level_alone_is_length_weighted(loss_type):
    chosen = {} if loss_type == "dapo" else {"loss_type": loss_type}
    result = trl(importance_sampling_level="sequence", **chosen)
    for key in ("importance_sampling_level", "loss_type"):
        assert line(result, key).verdict == "different"
        assert "length-weighted" in line(result, key).why
    why = line(result, "importance_sampling_level").why
    assert "every sequence's share of the gradient grows with its length" in why and "Nearest of ours: luspo" in why
    assert result.config.objective == gspo.LUSPO(clip_low=0.2, clip_high=0.2)


def test_length_weighted_losses_have_a_factor_where_there_is_one():
    factor = lambda **settings: line(trl(importance_sampling_level="sequence", **settings), "loss_type").factor  # noqa: E731
    assert factor() == "rows of the update / tokens of the update"
    assert factor(steps_per_generation=4) == "rows of the update / (tokens of the rollout batch / 4)"
    assert factor(loss_type="dr_grpo", max_completion_length=100) == "1/100"
    assert factor(loss_type="bnpo", gradient_accumulation_steps=2) == ""


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({"loss_type": "grpo"}, gspo.GRPO()),
        ({}, gspo.DAPO(clip_high=0.2)),
        ({"epsilon_high": 0.28}, gspo.DAPO()),
        ({"loss_type": "bnpo"}, gspo.DAPO(clip_high=0.2)),
        ({"loss_type": "dr_grpo", "max_completion_length": 64}, gspo.DrGRPO(max_length=64)),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, gspo.CISPO()),
        ({"loss_type": "cispo"}, gspo.CISPO(clip_high=-0.8)),
        ({"loss_type": "sapo"}, gspo.SAPO()),
        ({"loss_type": "sapo", "sapo_temperature_neg": 1.5}, gspo.SAPO(tau_neg=1.5)),
        ({"loss_type": "vespo"}, gspo.VESPO()),
        ({"loss_type": "vespo", "vespo_k_pos": 1.5}, gspo.VESPO(k_pos=1.5)),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, gspo.LUSPO(clip_low=0.2, clip_high=0.2)),
        ({"loss_type": "luspo"}, gspo.DrGRPO(max_length=1)),
        ({"loss_type": "grpo", "delta": 4.0}, gspo.DualClip(c=4.0)),
        ({"loss_type": "grpo", "delta": 1.1}, gspo.DualClip(base=gspo.GRPO(clip_high=1.1 - 1), c=1.2)),
    ],
)
def test_losses(settings, objective):
    result = trl(**settings)
    assert result.config.objective == objective
    for key in ("loss_type", "importance_sampling_level", *(("delta",) if "delta" in settings else ())):
        assert line(result, key).verdict == "equal", key


def test_losses_that_are_not_here_say_so():
    for kind in ("cispo", "sapo"):
        verdict, why = said("importance_sampling_level", importance_sampling_level="sequence", loss_type=kind)
        assert verdict == "different" and "ratio" in why
    assert said("importance_sampling_level", importance_sampling_level="sequence", loss_type="vespo")[0] == "equal"
    verdict, why = said("delta", loss_type="grpo", delta=1.2)
    assert verdict == "different" and "left out" in why
    for key in ("delta", "epsilon"):
        assert said(key, loss_type="sapo", **{key: 4.0})[0] == "no counterpart"
    assert "below 1" in said("epsilon_high", loss_type="cispo")[1]


def test_token_means_are_shared_over_the_updates_of_a_generation_batch():
    for kind in ("dapo", "cispo", "vespo"):
        one, four = trl(loss_type=kind), trl(loss_type=kind, steps_per_generation=4, epsilon_high=5)
        assert line(one, "loss_type").verdict == "equal"
        assert line(four, "loss_type").verdict == "equal up to a scale"
        assert line(four, "loss_type").factor == "tokens of the update / (tokens of the rollout batch / 4)"
    accumulated = trl(gradient_accumulation_steps=4)
    assert line(accumulated, "loss_type").verdict == "equal"
    spanned = trl(gradient_accumulation_steps=4, steps_per_generation=1)
    assert line(spanned, "loss_type").verdict == "different"
    assert line(trl(num_iterations=2), "loss_type").verdict == "equal"


def test_bnpo_divides_each_micro_batch():
    assert said("loss_type", loss_type="bnpo")[0] == "equal"
    assert said("loss_type", loss_type="bnpo", gradient_accumulation_steps=2)[0] == "different"
    assert said("loss_type", loss_type="bnpo", world_size=2)[0] == "different"


def test_bounds_that_never_act_are_named():
    four = {"steps_per_generation": 4, "loss_type": "grpo"}
    wide = said("epsilon", importance_sampling_level="sequence", epsilon=0.2, **four)
    assert wide == ("equal", wide[1]) and "practically never clips" in wide[1]
    assert said("epsilon", importance_sampling_level="sequence", epsilon=3e-4, **four) == ("equal", "")
    assert said("epsilon", epsilon=0.2, **four) == ("equal", "")
    assert "the ratio is 1 and no clip acts" in said("epsilon", epsilon=0.2)[1]
    assert "the ratio is 1 and no clip acts" in said("steps_per_generation")[1]
    assert "no clip acts" not in said("steps_per_generation", **four)[1]


def test_the_kl_term_follows_the_loss_in_its_averaging():
    term = lambda **settings: trl(beta=0.04, **settings).config.terms  # noqa: E731
    assert term() == (gspo.ReferenceKL(estimator="unbiased", averaging="token"),)
    assert term(loss_type="grpo") == (gspo.ReferenceKL(estimator="unbiased"),)
    assert term(loss_type="grpo", use_bias_correction_kl=False) == (gspo.ReferenceKL(),)
    assert said("beta", beta=0.04)[0] == said("use_bias_correction_kl", beta=0.04)[0] == "equal"
    assert said("beta", beta=0.04, steps_per_generation=4)[0] == "equal up to a scale"
    for kind in ("dr_grpo", "luspo"):
        assert said("beta", beta=0.04, loss_type=kind)[0] == "different"
    assert line(trl(beta=0.04, loss_type="dr_grpo"), "beta").factor == "tokens / (rows x 512)"
    sequence = {"beta": 0.04, "loss_type": "grpo", "importance_sampling_level": "sequence"}
    assert said("use_bias_correction_kl", **sequence)[0] == "different"
    assert said("use_bias_correction_kl", use_bias_correction_kl=True)[0] == "no counterpart"


def test_entropy_terms():
    assert trl(entropy_coef=0.01).config.terms == (gspo.EntropyBonus(coef=0.01),)
    assert said("entropy_coef", entropy_coef=0.01)[0] == "equal"
    assert said("entropy_coef", entropy_coef=0.01, gradient_accumulation_steps=2)[0] == "different"
    result = trl(use_adaptive_entropy=True, entropy_coef=0.01, entropy_target=0.75, entropy_coef_max=0.02)
    assert result.config.terms == (gspo.AdaptiveEntropy(coef=0.01, target=0.75, coef_max=0.02),)
    assert said("entropy_target", entropy_target=0.75)[0] == "no counterpart"


@pytest.mark.parametrize(
    ("settings", "estimator"),
    [
        ({}, gspo.GroupStd()),
        ({"scale_rewards": "group"}, gspo.GroupStd()),
        ({"scale_rewards": "true"}, gspo.GroupStd()),
        ({"scale_rewards": "false"}, gspo.GroupMean()),
        ({"scale_rewards": "none"}, gspo.GroupMean()),
        ({"scale_rewards": "batch"}, gspo.LitePPO()),
        ({"multi_objective_aggregation": "normalize_then_sum"}, gspo.GDPO()),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.25]},
            gspo.GDPO(weights=(1.0, 0.25)),
        ),
    ],
)
def test_advantages(settings, estimator):
    assert trl(**settings).config.advantage == estimator


def test_scale_rewards_none_is_text_and_not_null():
    assert trl(scale_rewards="none").config.advantage == gspo.GroupMean()
    with pytest.raises(ValueError, match="one of group, batch, none, true, false"):
        trl(scale_rewards="null")


def test_weights_of_rewards_that_are_not_named_are_not_written():
    verdict, why = said("reward_weights", reward_weights=[1, 2])
    assert verdict == "different" and "not written" in why
    assert "rewards.1.weight = 2" in line(trl(reward_weights=[1, 2]), "reward_weights").ours


@pytest.mark.parametrize(
    ("settings", "correction"),
    [
        ({}, SequenceMask(cap=3.0)),
        ({"mode": "token_truncate", "clip_max": 2.0}, TokenTIS(cap=2.0)),
        ({"mode": "token_mask"}, TokenMask(cap=3.0)),
        ({"mode": "token_mask", "clip_min": 0.5}, IcePop(low=0.5, high=3.0)),
        ({"mode": "sequence_truncate", "cap": 2.0}, SequenceTIS(cap=2.0)),
    ],
)
def test_engine_corrections(settings, correction):
    result = trl(use_vllm=True, **{f"vllm_importance_sampling_{name}": value for name, value in settings.items()})
    assert result.config.corrections == (correction,) and result.config.old_logprobs == "policy"
    assert line(result, "vllm_importance_sampling_mode").verdict == "equal"
    assert line(result, "use_vllm").verdict == "no counterpart"


def test_engine_corrections_that_do_not_act_are_not_written():
    assert trl(vllm_importance_sampling_mode="token_mask").config.corrections == ()
    assert trl(use_vllm=True, vllm_importance_sampling_correction=False).config.corrections == ()
    low = {"vllm_importance_sampling_mode": "sequence_truncate", "vllm_importance_sampling_clip_min": 0.5}
    assert said("vllm_importance_sampling_mode", use_vllm=True, **low)[0] == "different"


def test_filters():
    assert trl(top_entropy_quantile=0.2).config.corrections == (TopEntropy(),)
    assert said("top_entropy_quantile", top_entropy_quantile=0.2)[0] == "equal"
    assert said("top_entropy_quantile", top_entropy_quantile=0.2, num_iterations=2)[0] == "different"
    assert trl(off_policy_mask_threshold=0.5).config.corrections == (OPSM(),)
    assert trl(mask_truncated_completions=True).config.collector.drop_truncated


# ---- the step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "prompts", "updates", "epochs"),
    [
        ({}, 1, 1, 1),
        ({"steps_per_generation": 4}, 4, 4, 1),
        ({"gradient_accumulation_steps": 4}, 4, 1, 1),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8, "num_iterations": 3}, 8, 4, 3),
        ({"generation_batch_size": 64}, 8, 8, 1),
        ({"generation_batch_size": 64, "gradient_accumulation_steps": 2}, 8, 4, 1),
        ({"world_size": 4, "steps_per_generation": 2}, 8, 2, 1),
        ({"per_device_train_batch_size": 4, "num_generations": 4, "world_size": 2}, 2, 1, 1),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, 4, 1, 1),
    ],
)
def test_step_arithmetic(settings, prompts, updates, epochs):
    result = trl(**settings)
    config = result.config
    assert (config.prompts_per_step, config.updates_per_step, config.epochs) == (prompts, updates, epochs)
    assert all(
        found.verdict == "equal"
        for found in result.lines
        if found.key
        in ("per_device_train_batch_size", "steps_per_generation", "generation_batch_size", "num_iterations")
    )


def test_updates_that_cut_groups_or_straddle_batches_are_different():
    result = trl(per_device_train_batch_size=4, steps_per_generation=4)
    assert (result.config.prompts_per_step, result.config.updates_per_step) == (2, 2)
    why = line(result, "steps_per_generation").why
    assert "their 4 updates of 4 completions cut groups of 8; ours are whole: 2 updates of 8" in why
    straddling = trl(gradient_accumulation_steps=4, steps_per_generation=6)
    assert line(straddling, "steps_per_generation").verdict == "different"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generation_batch_size": 64, "steps_per_generation": 2}, "are both set"),
        ({"generation_batch_size": 60}, "no multiple of the 8 completions"),
        ({"per_device_train_batch_size": 3}, "does not divide into num_generations = 8"),
        ({"num_generations": 1}, "num_generations is 1"),
        ({"num_iterations": 1.5}, "whole number"),
        ({"epsilon": "wide"}, "it must be a number"),
        ({"loss_type": "gspo"}, 'importance_sampling_level="sequence", loss_type="grpo"'),
        ({"loss_type": "sappo"}, "did you mean 'sapo'?"),
        ({"importance_sampling_level": "sequence_token"}, "did you mean 'sequence'?"),
        ({"scale_rewards": "rows"}, "one of group, batch, none"),
        ({"lr_scheduler_type": "linaer"}, "did you mean 'linear'?"),
        ({"temperature": 0}, "sampling.temperature is 0"),
        ({"use_vllm": True, "loss_type": "vespo"}, "token_truncate or token_mask alone"),
        ({"world_size": 0}, "--world-size is 0"),
    ],
)
def test_what_trl_or_a_recipe_cannot_have_is_an_error(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        trl(**settings)


def test_length_of_the_run():
    config = trl(max_steps=400, steps_per_generation=4).config
    assert config.steps == 100
    odd = trl(max_steps=401, steps_per_generation=4)
    assert odd.config.steps == 101 and line(odd, "max_steps").verdict == "different"
    assert said("num_train_epochs")[0] == "different"
    counted = trl(prompts=1001, num_train_epochs=2, steps_per_generation=4)
    assert counted.config.steps == 2 * (1001 // 4) and line(counted, "num_train_epochs").verdict == "equal"


def test_schedule_and_warmup():
    four = {"steps_per_generation": 4, "max_steps": 400}
    config = trl(lr_scheduler_type="cosine", warmup_steps=40, **four).config
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("cosine", 10)
    assert trl(warmup_ratio=0.1, **four).config.schedule.warmup_steps == 10
    assert trl(warmup_steps=0.1, **four).config.schedule.warmup_steps == 10
    assert said("warmup_steps", warmup_steps=40, **four)[0] == "different"
    assert said("warmup_steps", warmup_steps=40, lr_scheduler_type="constant")[0] == "no counterpart"
    kwargs = '{"min_lr_rate": 0.1}'
    floor = trl(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=kwargs).config.schedule
    assert (floor.kind, floor.final) == ("cosine", 0.1)


def test_intervals_are_in_rollout_batches():
    result = trl(steps_per_generation=4, save_steps=100, eval_strategy="steps", eval_steps=40, save_total_limit=3)
    assert result.config.checkpoints.every == 25 and result.config.checkpoints.keep == 3
    assert result.config.evaluation.every == 10
    assert said("save_steps", steps_per_generation=4, save_steps=50)[0] == "different"


def test_model_data_and_adapters():
    config = trl(
        model_name_or_path="Qwen/Qwen3-0.6B", dataset_name="openai/gsm8k", dataset_train_split="train", use_peft=True,
        lora_r=8, lora_target_modules=["q_proj", "v_proj"], report_to=["wandb", "tensorboard"], run_name="mine",
        output_dir="runs/mine", top_k=50,
    ).config  # fmt: skip
    assert (config.model, config.data.path, config.name, config.folder) == (
        "Qwen/Qwen3-0.6B", "openai/gsm8k", "mine", "runs/mine",
    )  # fmt: skip
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (8, 32.0, ("q_proj", "v_proj"))
    assert config.trackers == ("wandb", "tensorboard") and config.sampling.top_k == 50
    assert said("top_k", top_k=50)[0] == "different"


# ---- names and defaults ----------------------------------------------------------------------------------------

CONVENTIONS = """
num_generations importance_sampling_level epsilon epsilon_high delta loss_type beta scale_rewards num_iterations
steps_per_generation per_device_train_batch_size gradient_accumulation_steps generation_batch_size temperature top_p
top_k max_completion_length use_vllm vllm_mode mask_truncated_completions vllm_importance_sampling_correction
vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
vllm_importance_sampling_cap reward_weights multi_objective_aggregation log_completions
"""


@pytest.mark.parametrize("key", CONVENTIONS.split())
def test_every_key_of_the_conventions_is_known(key):
    assert key in KEYS


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_verdict_and_a_recipe_that_loads(key):
    value = DEFAULTS[key]
    words = [
        f"--{key}",
        *([] if value is None else [str(item) for item in (value if isinstance(value, list) else [value])]),
    ]
    if value is None:
        words = [f"--{key}", "null"]
    found = line(import_trl(words), key)
    assert found.is_given and found.verdict
    assert found.why or found.ours or found.verdict == "equal"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("--epsilon_hihg", "epsilon_high"),
        ("--importance_sampling_levels", "importance_sampling_level"),
        ("--num_generation", "num_generations"),
        ("--max_prompt_length", "max_completion_length"),
    ],
)
def test_unknown_keys_are_errors_with_the_nearest_name(word, nearest):
    with pytest.raises(ValueError, match=f"unknown key '{word[2:]}': {LIBRARY} has no such setting") as error:
        import_trl([word, "1"])
    assert f"did you mean {nearest!r}?" in str(error.value)


def test_defaults_that_matter_are_reported():
    result = import_trl(["--seed", "1"])
    told = {found.key: found.theirs for found in result.lines if not found.is_given}
    expected = {
        "loss_type": "dapo", "importance_sampling_level": "token", "epsilon": "0.2", "beta": "0.0",
        "scale_rewards": "group", "num_iterations": "1", "steps_per_generation": "null", "temperature": "1.0",
        "num_generations": "8", "max_completion_length": "512", "learning_rate": "1e-06", "max_grad_norm": "1.0",
        "lr_scheduler_type": "linear", "weight_decay": "0.0", "adam_beta1": "0.9", "adam_beta2": "0.999",
        "mask_truncated_completions": "false",
    }  # fmt: skip
    assert expected.items() <= told.items()
    assert "vllm_importance_sampling_mode" not in told
    engine = {found.key: found.theirs for found in import_trl(["--use_vllm"]).lines}
    assert engine["vllm_importance_sampling_mode"] == "sequence_mask"
    assert engine["vllm_importance_sampling_clip_max"] == "3.0"
    assert "use_bias_correction_kl" in {found.key for found in import_trl(["--beta", "0.1"]).lines}


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("more", [{}, {"steps_per_generation": 4, "num_iterations": 2, "delta": 3.0, "beta": 0.1}])
def test_every_combination_loads_and_meets_its_requirements(tmp_path, loss_type, level, more):
    result = trl(loss_type=loss_type, importance_sampling_level=level, epsilon_high=0.3, **more)
    path = tmp_path / "recipe.toml"
    path.write_text(result.toml())
    config = load_config(path)
    assert config == result.config
    updates = config.updates_per_step * config.epochs
    terms = (config.objective, *config.terms)
    assert unmet(terms, config.advantage, group_size=config.group_size, updates_per_rollout=updates) == []
