"""Provenance of verl_0_9_1.json: verl's own losses, advantages and rollout corrections on fixed tensors. Not a test.

    python3 -m venv /tmp/verlenv && /tmp/verlenv/bin/pip install -r benchmarks/requirements-verl.txt
    /tmp/verlenv/bin/pip install --no-deps verl==0.9.1
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 /tmp/verlenv/bin/python tests/golden/make_verl.py

Nothing is replaced: the functions are called as installed, with verl's own config objects. Log-probs and rewards are
float64. The losses get the global batch (`global_batch_info`) as verl's engine gives it, unless a case says
otherwise.
"""

import datetime
import json
import math
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from fixed_inputs import BASIC, INPUTS, MAX_LENGTH, SCORED, listed
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import (
    compute_rollout_correction_weights,
    compute_rollout_rejection_mask,
)
from verl.workers.config import ActorConfig

TARGET = Path(__file__).with_name("verl_0_9_1.json")

FAR = ("far", "wild")
# name: (loss_mode, loss_agg_mode, actor settings, inputs)
CASES = {
    # Dual clip at 3 is verl's default; 1e9 switches it off.
    "vanilla": ("vanilla", "token-mean", {"clip_ratio_high": 0.28}, FAR),
    "vanilla_single_clip": ("vanilla", "token-mean", {"clip_ratio_high": 0.28, "clip_ratio_c": 1e9}, FAR),
    "vanilla_seq_mean": ("vanilla", "seq-mean-token-mean", {}, FAR),
    "vanilla_seq_sum": ("vanilla", "seq-mean-token-sum", {"clip_ratio_c": 1e9}, FAR),
    "vanilla_norm": ("vanilla", "seq-mean-token-sum-norm", {"clip_ratio_c": 1e9}, FAR),
    "vanilla_norm_20": ("vanilla", "seq-mean-token-sum-norm", {"clip_ratio_c": 1e9, "loss_scale_factor": 20}, FAR),
    "gspo": ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}, ("near", "far")),
    "gspo_wide": ("gspo", "seq-mean-token-mean", {}, FAR),
    "gspo_token_mean": ("gspo", "token-mean", {}, FAR),
    "gspo_seq_sum": ("gspo", "seq-mean-token-sum",
                     {"clip_ratio_low": 2e-3, "clip_ratio_high": 2.5e-3}, ("near", "far")),
    "geo_mean": ("geo_mean", "token-mean", {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}, (*FAR, "pairs")),
    "sapo": ("sapo", "seq-mean-token-mean", {}, FAR),
    "cispo": ("cispo", "token-mean", {"clip_ratio_low": 1.0, "clip_ratio_high": 4.0}, FAR),
    "cispo_default": ("cispo", "token-mean", {}, FAR),
    "gpg": ("gpg", "token-mean", {}, FAR),
    "gpg_seq_sum": ("gpg", "seq-mean-token-sum", {}, FAR),
    "dppo_tv": ("dppo_tv", "token-mean",
                {"clip_ratio_low": 0.15, "clip_ratio_high": 0.15, "clip_ratio_c": 20.0}, ("wild",)),
    "dppo_kl": ("dppo_kl", "token-mean",
                {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05, "clip_ratio_c": 20.0}, ("wild",)),
    "dppo_tv_cap_3": ("dppo_tv", "token-mean", {"clip_ratio_low": 0.15, "clip_ratio_high": 0.15}, ("wild",)),
}  # fmt: skip
WITHOUT_GLOBAL_BATCH = {
    "vanilla_seq_mean_local": ("vanilla", "seq-mean-token-mean", {}, FAR),
    "gspo_local": ("gspo", "seq-mean-token-mean", {}, FAR),
}
MICRO_BATCHES = {
    "geo_mean_in_two": ("geo_mean", "token-mean", {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}, ("pairs",))
}
"""The step's six rows in two micro-batches of three, whose losses verl's engine adds up."""
KL = {"kl_k1": "kl", "kl_k2": "mse", "kl_k3": "low_var_kl"}
WEIGHTS = {
    "token_tis": {"rollout_is": "token", "rollout_is_threshold": 2.0},
    "sequence_tis": {"rollout_is": "sequence", "rollout_is_threshold": 2.0},
    "icepop": {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
    "icepop_narrow": {"rollout_is": "token", "rollout_is_threshold": "0.6_1.8"},
    "sequence_icepop": {"rollout_is": "sequence", "rollout_is_threshold": "0.01_3.0"},
    "token_tis_batch_normalize": {
        "rollout_is": "token", "rollout_is_threshold": 2.0, "rollout_is_batch_normalize": True
    },
}  # fmt: skip
REJECTIONS = {
    "seq_mean_k1": "0.8_1.25",
    "seq_mean_k1_preset": "0.999_1.001",
    "seq_mean_k1_lopsided": "0.7_1.25",
    "seq_sum_k1": "0.5_2.0",
    "token_k1": "0.5_2.0",
    "seq_mean_k3": "0.1",
}
ADVANTAGES = {
    # name: (estimator, arguments), on the complete rewards
    "grpo": ("grpo", {}),
    "grpo_without_std": ("grpo", {"norm_adv_by_std_in_grpo": False}),
    "grpo_vectorized": ("grpo_vectorized", {}),
    "rloo": ("rloo", {}),
    "rloo_vectorized": ("rloo_vectorized", {}),
    "opo": ("opo", {}),
    "reinforce_plus_plus": ("reinforce_plus_plus", {}),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", {}),
    "grpo_passk": ("grpo_passk", {"norm_adv_by_std_in_grpo": False}),
    "grpo_passk_std": ("grpo_passk", {"norm_adv_by_std_in_grpo": True}),
    "gdpo": ("gdpo", {"gdpo_reward_keys": ["first", "second"]}),
    "gdpo_weighted": ("gdpo", {"gdpo_reward_keys": ["first", "second"], "gdpo_reward_weights": [1.0, 0.25]}),
    "reinforce_plus_plus_discounted": ("reinforce_plus_plus", {"gamma": 0.5}),
}
SINGLES = {"grpo_single": ("grpo", {}), "rloo_single": ("rloo", {}), "opo_single": ("opo", {})}
"""On "single", whose last two groups have one member."""


def global_batch(x):
    return {"dp_size": 1, "batch_num_tokens": int(x["mask"].sum()), "global_batch_size": len(x["mask"])}


def loss_and_gradient(mode, aggregation, settings, x, whole=True, weights=None):
    config = ActorConfig(strategy="fsdp", rollout_n=3, ppo_micro_batch_size_per_gpu=6, use_torch_compile=False,
                         loss_agg_mode=aggregation, **settings)  # fmt: skip
    if whole:  # as verl.workers.utils.losses.ppo_loss does
        config.global_batch_info.update(global_batch(x), loss_scale_factor=config.loss_scale_factor)
    leaf = x["logprobs"].clone().requires_grad_(True)
    mask = x["mask"].long()
    loss, _ = core_algos.get_policy_loss_fn(mode)(
        old_log_prob=x["old_logprobs"],
        log_prob=leaf,
        advantages=x["advantage"][:, None].expand(mask.shape) * mask,
        response_mask=mask,
        loss_agg_mode=aggregation,
        config=config,
        rollout_is_weights=weights,
    )
    loss.backward()
    assert math.isfinite(loss.item()) and leaf.grad.isfinite().all()
    return {"loss": loss.item(), "gradient": leaf.grad.tolist()}


def case(mode, aggregation, settings, keys, whole=True):
    results = {key: loss_and_gradient(mode, aggregation, settings, INPUTS[key], whole) for key in keys}
    return {"loss_mode": mode, "loss_agg_mode": aggregation, "settings": settings, "global_batch": whole,
            "results": results}  # fmt: skip


def micro_batch_case(mode, aggregation, settings, keys):
    results = {}
    for key in keys:
        halves = [{name: t[rows] for name, t in INPUTS[key].items()} for rows in (slice(0, 3), slice(3, 6))]
        parts = [loss_and_gradient(mode, aggregation, settings, half) for half in halves]
        results[key] = {name: parts[0][name] + parts[1][name] for name in ("loss", "gradient")}
    return {"loss_mode": mode, "settings": settings, "results": results}


def kl_case(kind):
    results = {}
    for key, x in BASIC.items():
        leaf = x["logprobs"].clone().requires_grad_(True)
        penalty = core_algos.kl_penalty(leaf, x["reference_logprobs"], kind)
        loss = core_algos.agg_loss(penalty, x["mask"].long(), "token-mean", **global_batch(x))
        loss.backward()
        results[key] = {"loss": loss.item(), "gradient": leaf.grad.tolist()}
    return {"kl_loss_type": kind, "loss_agg_mode": "token-mean", "results": results}


def mismatch(x):
    return x["old_logprobs"] - x["sampler_logprobs"]


def weight_case(settings):
    """The weights, and the vanilla loss under them."""
    x = INPUTS["wild"]
    weight, _ = compute_rollout_correction_weights(mismatch(x), x["mask"].long(), **settings)
    result = loss_and_gradient("vanilla", "token-mean", {"clip_ratio_high": 0.28, "clip_ratio_c": 1e9}, x,
                               weights=weight)  # fmt: skip
    return {"settings": settings, "weight": weight.tolist(), "results": {"wild": result}}


def rejection_case(name, threshold):
    x = INPUTS["wild"]
    option = name.removesuffix("_preset").removesuffix("_lopsided")
    kept, _ = compute_rollout_rejection_mask(mismatch(x), x["mask"].long(), option, threshold)
    return {"rollout_rs": option, "rollout_rs_threshold": threshold, "kept": kept.tolist()}


def advantage_case(estimator, arguments, given="complete"):
    """[B,9] token advantages; the reward stands on the last token, as verl's reward managers put it."""
    given = SCORED[given]
    rows, length = len(given["group"]), given["length"]
    mask = (torch.arange(MAX_LENGTH)[None] < length[:, None]).long()
    total = torch.zeros(rows, MAX_LENGTH, dtype=torch.float64)
    total[torch.arange(rows), length - 1] = given["rewards"].sum(dim=1)
    config = AlgoConfig(adv_estimator=estimator, **{"gamma": 1.0, **arguments})
    extra = {}
    if estimator == "gdpo":
        columns = given["rewards"].numpy()
        extra = {"non_tensor_batch": {"first": columns[:, 0], "second": columns[:, 1]}}
        extra["batch"] = {
            "prompts": torch.zeros(rows, 2),
            "attention_mask": torch.nn.functional.pad(mask, (2, 0), value=1),
        }
    elif "norm_adv_by_std_in_grpo" in arguments and estimator != "grpo_passk":
        extra = arguments
    advantage, _ = core_algos.get_adv_estimator_fn(estimator)(
        token_level_rewards=total, response_mask=mask, index=np.array(given["group"].tolist()), config=config, **extra
    )
    return {"estimator": estimator, "arguments": arguments, "advantage": advantage.tolist()}


def main():
    cases = {name: case(*given) for name, given in CASES.items()}
    cases |= {name: case(*given, whole=False) for name, given in WITHOUT_GLOBAL_BATCH.items()}
    cases |= {name: micro_batch_case(*given) for name, given in MICRO_BATCHES.items()}
    cases |= {name: kl_case(kind) for name, kind in KL.items()}
    packages = ("verl", "torch", "tensordict", "numpy")
    TARGET.write_text(
        json.dumps(
            {
                "what": "losses, weights and advantages of verl.trainer.ppo on fixed tensors; see make_verl.py",
                "date": datetime.date.today().isoformat(),
                "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
                "max_length": MAX_LENGTH,
                "inputs": listed({key: x for key, x in INPUTS.items() if key != "calm_pairs"}),
                "scored": listed(SCORED),
                "cases": cases,
                "weights": {name: weight_case(settings) for name, settings in WEIGHTS.items()},
                "rejections": {name: rejection_case(name, threshold) for name, threshold in REJECTIONS.items()},
                "advantages": {name: advantage_case(*given) for name, given in ADVANTAGES.items()}
                | {name: advantage_case(*given, "single") for name, given in SINGLES.items()},
            }
        )
        + "\n"
    )
    print(f"wrote {TARGET.name}: {len(cases)} losses")


if __name__ == "__main__":
    main()
