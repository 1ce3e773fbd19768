"""verl's overrides as ours: what is written, what is said of each line, and the arithmetic behind it."""

import re
from pathlib import Path

import pytest

import gspo
from gspo.corrections import GeometricBand, IcePop, SequenceMask, SequenceTIS, TokenTIS
from gspo.importing import import_verl
from gspo.importing.verl import DEFAULTS, HANDLERS, KEYS, LIBRARY
from gspo.importing.verl_keys import reason
from gspo.importing.verl_step import ACTOR, CORRECTION, MODEL, OPTIM, ROLLOUT
from gspo.requirements import unmet
from gspo.settings import load_config

DATA = Path(__file__).parent / "data"
BASIC = {"algorithm.adv_estimator": "grpo", f"{ROLLOUT}n": 8}
MODE, AVERAGING = f"{ACTOR}policy_loss.loss_mode", f"{ACTOR}loss_agg_mode"


def verl(*words, prompts=0, **settings):
    """Settings by the last part of their name, as ROLLOUT and ACTOR keys are long; or whole words."""
    return import_verl([*(f"{key}={value}" for key, value in BASIC.items()), *words], prompts=prompts)


def actor(**settings):
    return [f"{ACTOR}{key}={value}" for key, value in settings.items()]


def mode(name, averaging="token-mean"):
    return [f"{MODE}={name}", f"{AVERAGING}={averaging}"]


def line(result, key):
    (found,) = [line for line in result.lines if line.key == key]
    return found


def said(key, *words, prompts=0):
    found = line(verl(*words, prompts=prompts), key)
    return found.verdict, found.why


def test_the_published_gspo_settings_are_gspo(tmp_path):
    result = import_verl([str(DATA / "verl_gspo.sh")])
    config = result.config
    assert config.objective == gspo.GSPO(clip_low=3e-4, clip_high=4e-4)
    assert (config.prompts_per_step, config.group_size, config.updates_per_step) == (512, 16, 4)
    assert (config.epochs, config.terms, config.corrections) == (1, (), ())
    assert config.advantage == gspo.GroupStd(eps=1e-6) and config.old_logprobs == "policy"
    assert config.sampling.max_completion_tokens == 8192 and config.model == "Qwen/Qwen3-0.6B"
    assert config.trackers == ("wandb",)
    loss = [MODE, AVERAGING, f"{ACTOR}clip_ratio_low", f"{ACTOR}clip_ratio_high", "algorithm.adv_estimator"]
    assert {result.verdicts()[key] for key in (*loss, f"{ACTOR}ppo_mini_batch_size")} == {"equal"}
    path = tmp_path / "recipe.toml"
    path.write_text(result.toml())
    assert load_config(path) == config


# ---- reading ---------------------------------------------------------------------------------------------------


def test_plus_words_and_a_script_after_words():
    result = verl("+data.train_batch_size=64", "+reward.reward_kwargs.anything=1", *actor(ppo_mini_batch_size=32))
    assert result.config.prompts_per_step == 64
    assert line(result, "reward.reward_kwargs.anything").verdict == "no counterpart"
    later = import_verl([str(DATA / "verl_gspo.sh"), "data.train_batch_size=256"])
    assert later.config.updates_per_step == 2


def test_shell_variables_that_the_script_does_not_set(tmp_path):
    script = tmp_path / "run.sh"
    words = f"algorithm.adv_estimator=grpo {ROLLOUT}n=8 {MODEL}path=$MODEL data.train_batch_size=$PROMPTS"
    script.write_text(f"python -m verl.trainer.main_ppo {words}  # it's a comment\n")
    with pytest.raises(ValueError, match=r"data.train_batch_size is '\$PROMPTS'; it must be a number"):
        import_verl([str(script)])
    result = import_verl([str(script), "data.train_batch_size=512"])
    assert any("shell variable ($MODEL)" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=2\nx.y=$((a * 3 + 1))\n", ["x.y=7"]),
        ("export a=b\nx.y=${a} z.w=${none:-3} v.v=${none-}\n", ["x.y=b", "z.w=3", "v.v="]),
        ("A=(x.y=1\n  z.w='[1,2]'\n)\n", ["x.y=1", "z.w=[1,2]"]),
        ("x.y=$((a / 0)) \\\n  +z.w=1 # c.d=2\n", ["x.y=$((a/0))", "+z.w=1"]),
        ("- x.y=1\n- z.w=two\n", ["x.y=1", "z.w=two"]),
    ],
)
def test_scripts(text, words):
    from gspo.importing.reading import script_overrides

    assert script_overrides(text) == words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1_5", "1_5"), ("-1", -1), (".5", 0.5), ("null", None), ("none", "none"), ("True", True),
        ("[console,wandb]", ["console", "wandb"]), ('["a", 3e-4]', ["a", 3e-4]), ("'3'", "3"), ("a.b", "a.b"),
        ("", None), ("{a:1}", "{a:1}"), ("[[1],[2]", "[[1],[2]"),
    ],
)  # fmt: skip
def test_values(text, value):
    from gspo.importing.reading import value_of

    assert value_of(text) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_batch_size=512"], "verl's keys have dots"),
        (["nothing.sh"], "neither an override such as a.b=value nor a file"),
        (["~trainer.logger"], "neither an override"),
    ],
)
def test_words_that_are_no_overrides(words, message):
    with pytest.raises(ValueError, match=message):
        import_verl(words)


def test_files_without_overrides(tmp_path):
    empty, broken, binary = tmp_path / "a.sh", tmp_path / "b.sh", tmp_path / "c.sh"
    empty.write_text("echo hello\n")
    broken.write_text("echo 'x.y=1\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in ((empty, "has no override"), (broken, "cannot read"), (binary, "not a text file")):
        with pytest.raises(ValueError, match=message):
            import_verl([str(path)])


# ---- the loss --------------------------------------------------------------------------------------------------

DAPO, GRPO = gspo.DAPO(clip_high=0.2), gspo.GRPO()


@pytest.mark.parametrize(
    ("words", "objective"),
    [
        ([], gspo.DualClip(base=DAPO)),
        (mode("vanilla", "seq-mean-token-mean"), gspo.DualClip(base=GRPO)),
        (mode("vanilla", "seq-mean-token-sum"), gspo.DualClip(base=gspo.DrGRPO(max_length=1))),
        (
            [*mode("vanilla", "seq-mean-token-sum-norm"), *actor(loss_scale_factor=20)],
            gspo.DualClip(base=gspo.DrGRPO(max_length=20)),
        ),
        (actor(clip_ratio_c=10.0, clip_ratio_high=0.28), gspo.DualClip(base=gspo.DAPO(), c=10.0)),
        (actor(clip_ratio_c=1e9), DAPO),
        (mode("gspo", "seq-mean-token-mean"), gspo.GSPO(clip_low=0.2, clip_high=0.2)),
        (mode("gspo", "seq-mean-token-sum"), gspo.LUSPO(clip_low=0.2, clip_high=0.2)),
        (mode("sapo"), gspo.SAPO()),
        ([*mode("cispo"), *actor(clip_ratio_low=1.0, clip_ratio_high=4.0)], gspo.CISPO()),
        (mode("cispo"), gspo.CISPO(clip_low=0.2, clip_high=0.2)),
        (mode("dppo_tv"), gspo.DPPO(clip_low=0.2, clip_high=0.2, cap=3.0)),
        (
            [*mode("dppo_kl"), *actor(clip_ratio_low=0.05, clip_ratio_high=0.05, clip_ratio_c=20.0)],
            gspo.DPPO(divergence="kl", clip_low=0.05, clip_high=0.05),
        ),
        (mode("gpg"), gspo.REINFORCE(averaging="token", off_policy=True)),
        (mode("gpg", "seq-mean-token-sum"), gspo.REINFORCE(off_policy=True)),
        ([*mode("gpg"), *actor(ppo_mini_batch_size=1024)], gspo.REINFORCE(averaging="token")),
    ],
)
def test_losses(words, objective):
    result = verl(*words)
    assert result.config.objective == objective
    assert result.verdicts()[MODE] == "equal"
    assert result.verdicts()[AVERAGING] in ("equal", "no counterpart")


@pytest.mark.parametrize("averaging", ["token-mean", "token-sum", "seq-mean-token-sum-norm"])
def test_gspo_under_another_average_is_length_weighted(averaging):
    result = verl(*mode("gspo", averaging), *([f"{ACTOR}loss_scale_factor=50"] if averaging.endswith("norm") else []))
    found = line(result, AVERAGING)
    assert found.verdict == "different" and "length-weighted" in found.why and "Nearest of ours: luspo" in found.why
    assert result.config.objective == gspo.LUSPO(clip_low=0.2, clip_high=0.2)
    factor = {"token-mean": "rows / tokens of the update", "token-sum": "2048 (rows of an update)"}
    assert found.factor == factor.get(averaging, "1/50")


def test_verls_gspo_is_length_weighted_by_default():
    assert "length-weighted" in said(AVERAGING, f"{MODE}=gspo")[1]


def test_averages_up_to_a_scale():
    found = line(verl(*mode("vanilla", "token-sum")), AVERAGING)
    assert (found.verdict, found.factor) == ("equal up to a scale", "2048 (rows of an update)")
    found = line(verl(*mode("gpg", "seq-mean-token-sum-norm"), *actor(loss_scale_factor=50)), AVERAGING)
    assert (found.verdict, found.factor) == ("equal up to a scale", "1/50")
    assert line(verl(*mode("cispo", "token-sum")), AVERAGING).factor == "tokens of the update"
    assert said(AVERAGING, *mode("cispo", "seq-mean-token-mean"))[0] == "different"
    assert said(AVERAGING, *mode("vanilla", "seq-mean-token-sum-norm"))[0] == "different"
    assert said(AVERAGING, *mode("sapo", "seq-mean-token-mean"))[0] == "equal"
    assert said(AVERAGING, *mode("sapo", "token-mean"))[0] == "no counterpart"


def test_geo_mean_counts_its_micro_batches():
    bounds = actor(clip_ratio_low=0.4, clip_ratio_high=0.4)
    result = verl(*mode("geo_mean"), *bounds)
    assert result.config.objective == gspo.GMPO()
    assert (line(result, MODE).verdict, line(result, MODE).factor) == (
        "equal up to a scale", "micro-batches of an update",
    )  # fmt: skip
    counted = verl(*mode("geo_mean"), *bounds, *actor(ppo_micro_batch_size_per_gpu=16))
    assert line(counted, MODE).factor == str(256 * 8 // 8 // 16)
    assert said(MODE, *mode("geo_mean"), *actor(clip_ratio_low=0.3))[0] == "different"


def test_dro_is_reinforce_with_k2_to_the_old_policy():
    result = verl(*mode("dro"), *actor(**{"policy_loss.dro_beta": 0.5}))
    assert result.config.objective == gspo.REINFORCE(averaging="token", off_policy=True)
    assert result.config.terms == (gspo.OldKL(coef=0.5, estimator="k2"),)
    with pytest.raises(ValueError, match="needs a number above 0"):
        verl(*mode("dro"))


def test_clip_ratio_alone_changes_nothing():
    result = verl(*actor(clip_ratio=0.1))
    found = line(result, f"{ACTOR}clip_ratio")
    assert found.verdict == "no counterpart" and "changes nothing in verl" in found.why
    assert result.config.objective.base.clip_low == 0.2
    nulled = verl(*actor(clip_ratio=0.1, clip_ratio_low="null", clip_ratio_high="null"))
    assert nulled.config.objective.base == gspo.DAPO(clip_low=0.1, clip_high=0.1)


def test_bounds_that_never_act_are_named():
    assert "practically never clips" in said(f"{ACTOR}clip_ratio_low", *mode("gspo", "seq-mean-token-mean"))[1]
    assert said(f"{ACTOR}clip_ratio_low")[1] == ""
    one = actor(ppo_mini_batch_size=1024)
    assert "the ratio is 1 and no clip acts" in said(f"{ACTOR}clip_ratio_low", *one)[1]
    assert "the ratio is 1 and no clip acts" in said(f"{ACTOR}ppo_mini_batch_size", *one)[1]


def test_losses_that_are_not_here_say_so():
    for name in ("clip_cov", "kl_cov"):
        assert said(MODE, *mode(name))[0] == "different"
    assert said(f"{ACTOR}clip_ratio_c", *mode("gspo"), *actor(clip_ratio_c=3.0))[0] == "no counterpart"
    assert said(f"{ACTOR}clip_ratio_c", *actor(clip_ratio_c=1.1))[0] == "different"
    assert said(f"{ACTOR}tau_pos", *actor(tau_pos=1.0))[0] == "no counterpart"


def test_terms_are_averaged_like_the_loss():
    kl = actor(use_kl_loss=True)
    assert verl(*kl).config.terms == (gspo.ReferenceKL(coef=0.001, averaging="token"),)
    rows = [f"{AVERAGING}=seq-mean-token-mean"]
    assert verl(*kl, *rows, *actor(kl_loss_type="k3+")).config.terms == (
        gspo.ReferenceKL(coef=0.001, estimator="k2"),
    )  # fmt: skip
    assert said(f"{ACTOR}use_kl_loss", *kl)[0] == "equal"
    assert said(f"{ACTOR}use_kl_loss", *kl, f"{AVERAGING}=seq-mean-token-sum")[0] == "different"
    assert said(f"{ACTOR}kl_loss_type", *kl, *actor(kl_loss_type="abs"))[0] == "different"
    assert said(f"{ACTOR}kl_loss_coef", *actor(kl_loss_coef=0.1))[0] == "no counterpart"
    assert verl(*actor(entropy_coeff=0.01), *rows).config.terms == (
        gspo.EntropyBonus(coef=0.01, averaging="sequence"),
    )  # fmt: skip
    assert said(f"{ACTOR}use_kl_loss", *kl, *mode("geo_mean"))[0] == "different"


@pytest.mark.parametrize(
    ("words", "estimator"),
    [
        (["algorithm.norm_adv_by_std_in_grpo=False"], gspo.GroupMean()),
        (["algorithm.adv_estimator=grpo_vectorized"], gspo.GroupStd(eps=1e-6)),
        (["algorithm.adv_estimator=rloo"], gspo.RLOO()),
        (["algorithm.adv_estimator=opo"], gspo.OPO(off_policy=True)),
        (["algorithm.adv_estimator=opo", *actor(ppo_mini_batch_size=1024)], gspo.OPO()),
        (["algorithm.adv_estimator=reinforce_plus_plus"], gspo.ReinforcePP()),
        (["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.gamma=0.5"], gspo.ReinforcePP(gamma=0.5)),
        (
            ["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.use_kl_in_reward=True"],
            gspo.ReinforcePP(kl_coef=0.001),
        ),
        (["algorithm.adv_estimator=reinforce_plus_plus_baseline"], gspo.ReinforcePPBaseline()),
        (
            ["algorithm.adv_estimator=gdpo", "algorithm.gdpo_reward_weights=[1.0,0.25]"],
            gspo.GDPO(weights=(1.0, 0.25), eps=1e-6, whiten="token"),
        ),
    ],
)
def test_advantages(words, estimator):
    result = verl(*words)
    assert result.config.advantage == estimator
    assert result.verdicts()["algorithm.adv_estimator"] == "equal"


def test_advantages_that_are_not_ours():
    key = "algorithm.adv_estimator"
    assert said(key, f"{key}=grpo_passk")[0] == "different"
    assert said(key, f"{key}=optimal_token_baseline")[0] == "different"
    assert said(key, f"{key}=gpg")[0] == "equal up to a scale"
    assert said(key, f"{ROLLOUT}n=1")[0] == "different"
    assert said("algorithm.use_kl_in_reward", "algorithm.use_kl_in_reward=True")[0] == "different"
    for name in ("gae", "remax"):
        with pytest.raises(ValueError, match=f"algorithm.adv_estimator is {name}: it needs a"):
            verl(f"{key}={name}")
    with pytest.raises(ValueError, match=re.escape("gae (verl's default): it needs a critic")):
        import_verl([f"{ROLLOUT}n=8"])


def test_gspo_with_an_advantage_per_token_is_gspo_token():
    words = ["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.gamma=0.9"]
    config = verl(*words, *mode("gspo", "seq-mean-token-mean")).config
    assert config.objective == gspo.GSPOToken(clip_low=0.2, clip_high=0.2) and config.advantage.gamma == 0.9
    assert said("algorithm.adv_estimator", *words, *mode("geo_mean"))[0] == "different"


@pytest.mark.parametrize(
    ("words", "correction", "verdict"),
    [
        (["rollout_is=token"], TokenTIS(), "equal"),
        (["rollout_is=token", "rollout_is_threshold=5.0"], TokenTIS(cap=5.0), "equal"),
        (["rollout_is=token", "rollout_is_threshold=0.5_5.0"], IcePop(), "equal"),
        (["rollout_is=sequence"], SequenceTIS(), "equal"),
        (["rollout_is=sequence", "rollout_is_threshold=0.5_3.0"], SequenceMask(), "different"),
        (["rollout_is=token", "rollout_is_batch_normalize=True"], TokenTIS(), "equal up to a scale"),
    ],
)
def test_rollout_weights(words, correction, verdict):
    result = verl(*(CORRECTION + word for word in words))
    assert result.config.corrections == (correction,) and result.config.old_logprobs == "policy"
    assert result.verdicts()[f"{CORRECTION}rollout_is"] == verdict


def test_rejection_bounds_are_on_the_inverse_ratio():
    words = [f"{CORRECTION}rollout_rs=seq_mean_k1", f"{CORRECTION}rollout_rs_threshold=0.5_1.25"]
    result = verl(*words)
    assert result.config.corrections == (GeometricBand(low=0.8, high=2.0),)
    found = line(result, f"{CORRECTION}rollout_rs")
    assert (found.verdict, found.factor) == ("equal up to a scale", "tokens of the update / those kept")
    rows = [f"{AVERAGING}=seq-mean-token-mean"]
    assert said(f"{CORRECTION}rollout_rs", *words, *rows)[0] == "equal"
    assert said(f"{CORRECTION}rollout_rs", *words, *rows, *actor(use_kl_loss=True))[0] == "different"
    single = verl(words[0], f"{CORRECTION}rollout_rs_threshold=1.25")
    assert single.config.corrections == (GeometricBand(low=0.8, high=1.25),)
    other = [f"{CORRECTION}rollout_rs=token_k1", f"{CORRECTION}rollout_rs_threshold=2.0"]
    assert said(f"{CORRECTION}rollout_rs", *other)[0] == "no counterpart"


def test_bypass_mode_takes_the_samplers_log_probs():
    bypass = [f"{CORRECTION}bypass_mode=True"]
    result = verl(*bypass, *mode("gspo", "seq-mean-token-mean"), f"{CORRECTION}rollout_is=token")
    assert result.config.old_logprobs == "sampler" and result.config.objective.name == "gspo"
    assert result.config.corrections == ()
    legacy = verl(*bypass, *mode("gspo", "seq-mean-token-mean"), "trainer.use_v1=False")
    assert legacy.config.objective == gspo.DualClip(base=GRPO)
    assert "bypass mode runs vanilla" in line(legacy, MODE).why


# ---- the step, the run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ([], (1024, 8, 4, 1)),
        ([*actor(ppo_mini_batch_size=1024, ppo_epochs=2)], (1024, 8, 1, 2)),
        (["data.train_batch_size=64", *actor(ppo_mini_batch_size=16)], (64, 8, 4, 1)),
    ],
)
def test_step_arithmetic(words, step):
    config = verl(*words).config
    assert (config.prompts_per_step, config.group_size, config.updates_per_step, config.epochs) == step


def test_mini_batches_that_do_not_divide():
    result = verl("data.train_batch_size=10", *actor(ppo_mini_batch_size=4))
    assert result.config.updates_per_step == 2
    assert line(result, f"{ACTOR}ppo_mini_batch_size").verdict == "different"
    with pytest.raises(ValueError, match="verl refuses that too"):
        verl("data.train_batch_size=10")


def test_length_schedule_and_optimizer():
    config = verl("trainer.total_training_steps=50", f"{OPTIM}lr=2e-6", f"{OPTIM}betas=[0.9,0.95]").config
    assert (config.steps, config.optimizer.lr, config.optimizer.beta2) == (50, 2e-6, 0.95)
    assert verl(prompts=7473).config.steps == 30 * 7
    assert said("trainer.total_epochs")[0] == "different"
    warm = verl(f"{OPTIM}lr_warmup_steps=10")
    assert warm.config.schedule.warmup_steps == 10 and line(warm, f"{OPTIM}lr_warmup_steps").verdict == "different"
    share = [f"{OPTIM}lr_warmup_steps_ratio=0.1", "trainer.total_training_steps=50"]
    assert verl(*share).config.schedule.warmup_steps == 5
    cosine = [f"{OPTIM}lr_scheduler_type=cosine", f"{OPTIM}min_lr_ratio=0.1"]
    assert (verl(*cosine).config.schedule.kind, verl(*cosine).config.schedule.final) == ("cosine", 0.1)
    assert said(f"{OPTIM}lr_scheduler_type", *cosine)[0] == "different"
    assert said(f"{OPTIM}lr_scheduler_type", *cosine, *actor(ppo_mini_batch_size=1024))[0] == "equal"
    assert said(f"{OPTIM}weight_decay")[0] == "different"
    assert "changes nothing in verl" in said(f"{ACTOR}grad_clip", *actor(grad_clip=0.5))[1]
    assert verl(f"{OPTIM}clip_grad=0.5").config.optimizer.max_grad_norm == 0.5


def test_data_rewards_and_adapters():
    words = [
        "data.train_files=train.parquet", "data.val_files=['test.parquet']", "data.prompt_key=question",
        "custom_reward_function.path=mine.py", f"{MODEL}path=Qwen/Qwen3-0.6B", f"{MODEL}lora_rank=8",
        "+reward_model.reward_kwargs.overlong_buffer_cfg.enable=True",
        "+reward_model.reward_kwargs.overlong_buffer_cfg.len=64", "trainer.test_freq=5", "trainer.save_freq=20",
        "algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc",
    ]  # fmt: skip
    result = verl(*words)
    config = result.config
    assert (config.data.path, config.data.held_out_path, config.data.prompt_column) == (
        "train.parquet", "test.parquet", "question",
    )  # fmt: skip
    assert [(reward.function, reward.name) for reward in config.rewards] == [
        ("mine.py:compute_score", ""),
        ("", "overlong"),
    ]
    assert config.rewards[1].options == {"max_tokens": 512, "buffer_tokens": 64}
    assert (config.lora.rank, config.lora.alpha, config.model) == (8, 16.0, "Qwen/Qwen3-0.6B")
    assert (config.evaluation.every, config.checkpoints.every, config.collector.refill) == (5, 20, True)
    assert "not of acc" in line(result, "algorithm.filter_groups.enable").why
    assert verl(*words, "+reward_model.reward_kwargs.max_resp_len=256").config.rewards[1].options["max_tokens"] == 256
    alone = [word for word in words if not word.startswith("custom")]
    found = line(verl(*alone), "reward_model.reward_kwargs.overlong_buffer_cfg.enable")
    assert found.verdict == "different" and "not written" in found.why and verl(*alone).config.rewards == ()


def test_sampling():
    config = verl(f"{ROLLOUT}top_k=20", f"{ROLLOUT}temperature=0.7", f"{ROLLOUT}top_p=0.9").config
    assert (config.sampling.top_k, config.sampling.temperature, config.sampling.top_p) == (20, 0.7, 0.9)
    assert verl(f"{ROLLOUT}top_k=-1").config.sampling.top_k == 0
    assert said(f"{ROLLOUT}top_p", f"{ROLLOUT}top_p=0.9")[0] == "different"
    validation = [f"{ROLLOUT}val_kwargs.{name}" for name in ("do_sample=True", "n=4", "temperature=1.0")]
    assert (verl(*validation).config.evaluation.samples, verl(*validation).config.evaluation.temperature) == (4, 1.0)


# ---- names and defaults ----------------------------------------------------------------------------------------

CONVENTIONS = [
    f"{ROLLOUT}n", MODE, f"{ACTOR}clip_ratio_low", f"{ACTOR}clip_ratio_high", f"{ACTOR}clip_ratio_c", AVERAGING,
    f"{ACTOR}use_kl_loss", f"{ACTOR}kl_loss_coef", f"{ACTOR}kl_loss_type", "algorithm.norm_adv_by_std_in_grpo",
    f"{ACTOR}ppo_epochs", f"{ACTOR}ppo_mini_batch_size", "data.train_batch_size",
    f"{ACTOR}ppo_micro_batch_size_per_gpu", f"{ROLLOUT}temperature", "data.max_response_length", f"{ROLLOUT}name",
    *(f"{CORRECTION}{name}" for name in ("rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize")),
    *(f"{CORRECTION}{name}" for name in ("rollout_rs", "rollout_rs_threshold", "bypass_mode", "loss_type")),
    "algorithm.adv_estimator", "trainer.log_val_generations", "trainer.rollout_data_dir",
    "reward.reward_kwargs.overlong_buffer_cfg.enable",
]  # fmt: skip


@pytest.mark.parametrize("key", CONVENTIONS)
def test_every_key_of_the_conventions_is_known(key):
    assert key in KEYS


def text(value):
    return "null" if value is None else "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def test_every_other_name_has_a_reason():
    for key in KEYS:
        assert key in HANDLERS or reason(key)
    assert len(KEYS) > 900


@pytest.mark.parametrize("key", HANDLERS)
def test_every_key_has_a_verdict_and_a_recipe_that_loads(key):
    value = BASIC.get(key, DEFAULTS[key])
    if key in ("data.train_files", "data.prompt_key", f"{ROLLOUT}name") or key.endswith("overlong_buffer_cfg.len"):
        value = 8 if key.endswith("len") else "name"
    found = line(verl(f"{key}={text(value)}"), key)
    assert found.is_given and (found.why or found.ours or found.verdict == "equal")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        (f"{ACTOR}clip_ratio_hihg", f"{ACTOR}clip_ratio_high"),
        ("data.train_batchsize", "data.train_batch_size"),
        ("algorithm.rollout_correction.rollout_iss", "algorithm.rollout_correction.rollout_is"),
        ("critic.optim.lrr", "critic.optim.lr"),
    ],
)
def test_unknown_keys_are_errors_with_the_nearest_name(word, nearest):
    with pytest.raises(ValueError, match=f"unknown key '{re.escape(word)}': {LIBRARY} has no such setting") as error:
        verl(f"{word}=1")
    assert f"did you mean {nearest!r}?" in str(error.value)


def test_tables_of_free_names_are_open():
    key = f"{ROLLOUT}engine_kwargs.vllm.swap_space"
    assert line(verl(f"+{key}=4"), key).verdict == "no counterpart"


def test_defaults_that_matter_are_reported():
    told = {found.key: found.theirs for found in verl("data.seed=1").lines if not found.is_given}
    expected = {
        MODE: "vanilla", AVERAGING: "token-mean", f"{ACTOR}clip_ratio_low": "0.2", f"{ACTOR}clip_ratio_high": "0.2",
        f"{ACTOR}clip_ratio_c": "3.0", "algorithm.norm_adv_by_std_in_grpo": "true", f"{ACTOR}use_kl_loss": "false",
        "algorithm.use_kl_in_reward": "false", f"{ACTOR}entropy_coeff": "0", "data.train_batch_size": "1024",
        f"{ACTOR}ppo_mini_batch_size": "256", f"{ACTOR}ppo_epochs": "1", "data.max_response_length": "512",
        f"{ROLLOUT}temperature": "1.0", f"{ROLLOUT}top_p": "1", f"{ROLLOUT}top_k": "-1", f"{OPTIM}lr": "1e-06",
        f"{OPTIM}clip_grad": "1.0", f"{CORRECTION}rollout_is": "null", f"{CORRECTION}rollout_rs": "null",
    }  # fmt: skip
    assert expected.items() <= told.items()
    with_kl = {found.key: found.theirs for found in verl(*actor(use_kl_loss=True)).lines}
    assert with_kl[f"{ACTOR}kl_loss_coef"] == "0.001" and with_kl[f"{ACTOR}kl_loss_type"] == "low_var_kl"


MODES = ["vanilla", "gspo", "sapo", "geo_mean", "cispo", "gpg", "dppo_tv", "dppo_kl", "clip_cov", "bypass_mode"]


@pytest.mark.parametrize("averaging", ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("estimator", ["grpo", "opo", "reinforce_plus_plus", "grpo_passk"])
def test_every_combination_loads_and_meets_its_requirements(tmp_path, name, averaging, estimator):
    words = [f"algorithm.adv_estimator={estimator}", "algorithm.gamma=0.9", "algorithm.use_kl_in_reward=True"]
    result = verl(*words, *mode(name, averaging), *actor(use_kl_loss=True))
    path = tmp_path / "recipe.toml"
    path.write_text(result.toml())
    config = load_config(path)
    assert config == result.config
    updates = config.updates_per_step * config.epochs
    terms = (config.objective, *config.terms)
    assert unmet(terms, config.advantage, group_size=config.group_size, updates_per_rollout=updates) == []


def test_ranks_that_see_the_same_rows():
    result = verl(*actor(**{"ulysses_sequence_parallel_size": 4, "megatron.tensor_model_parallel_size": 2}))
    assert (result.config.ranks.context_parallel, result.config.ranks.tensor_parallel) == (4, 2)
