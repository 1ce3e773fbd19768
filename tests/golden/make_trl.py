"""Provenance of trl_1_16.json: TRL's own code, called on fixed log-probs and rewards, with gradients. Not a test.

    python3 -m venv /tmp/trlenv && /tmp/trlenv/bin/pip install -r benchmarks/requirements-trl.txt
    /tmp/trlenv/bin/pip install --no-deps -e .
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 /tmp/trlenv/bin/python tests/golden/make_trl.py

Trainers are built around an untrained tiny model; only what would sample, score or read the model is replaced, by
functions that return our tensors (log-probs and entropies as float64 leaves). Everything behind that is the trainers'
`_compute_loss` and `_generate_and_score_completions` as installed.
"""

import datetime
import json
import math
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from fixed_inputs import BASIC, INPUTS, MAX_LENGTH, SCORED, listed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.a2po import A2POConfig, A2POTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from gspo.models import TinyConfig, tiny_model

TARGET = Path(__file__).with_name("trl_1_16.json")

# name: (settings, inputs)
BASIC_CASES = {
    "gspo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "gspo_wide": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2},
    "grpo": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2},
    "grpo_clip_higher": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.28},
    "grpo_kl": {
        "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.04, "use_bias_correction_kl": False
    },
    "grpo_kl_default": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.04},
    "grpo_entropy": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "entropy_coef": 0.01},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon": 0.2, "epsilon_high": 0.2},
    "bnpo": {"loss_type": "bnpo", "epsilon": 0.2, "epsilon_high": 0.28},
    "dapo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
    "dapo_kl": {
        "loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.04, "use_bias_correction_kl": False
    },
    # One of four updates on a generation batch of 100 completion tokens.
    "dapo_of_four": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "steps_per_generation": 4},
}  # fmt: skip
CASES = {
    # tau_neg: TRL's torch.where makes it float32, which holds 1.0625 exactly and 1.05 not.
    "sapo": ({"loss_type": "sapo", "sapo_temperature_neg": 1.0625}, ("far", "wild")),
    "sapo_default": ({"loss_type": "sapo"}, ("wild",)),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, ("far", "wild")),
    "cispo_of_four": ({"loss_type": "cispo", "epsilon_high": 5.0, "steps_per_generation": 4}, ("wild",)),
    "vespo": ({"loss_type": "vespo"}, ("far", "wild")),
    "vespo_of_four": ({"loss_type": "vespo", "steps_per_generation": 4}, ("wild",)),
    "luspo": (
        {"importance_sampling_level": "sequence", "loss_type": "luspo", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
        ("near", "far", "wild"),
    ),
    "grpo_wild": ({"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2}, ("wild",)),
    "grpo_delta": ({"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2, "delta": 4.0}, ("far", "wild")),
    "gspo_delta": (
        {
            "importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2,
            "delta": 1.25,
        },
        ("far", "wild"),
    ),
    "top_entropy": ({"loss_type": "dapo", "epsilon_high": 0.28, "top_entropy_quantile": 0.2}, ("far", "wild")),
    "top_entropy_grpo": ({"loss_type": "grpo", "top_entropy_quantile": 0.2}, ("wild",)),
    # On SAPO, which clips nothing: what has no gradient was masked.
    "opsm": (
        {"loss_type": "sapo", "sapo_temperature_neg": 1.0625, "off_policy_mask_threshold": 0.1}, ("far", "wild")
    ),
}  # fmt: skip
GMPO_CASES = {
    "gmpo": ({"epsilon": 0.4, "epsilon_high": 0.4}, ("pairs",)),
    "gmpo_empty_row": ({"epsilon": 0.4, "epsilon_high": 0.4}, ("far", "wild")),
}
SAMPLER_CASES = {
    name: {
        "settings": {"loss_type": "dapo", "epsilon_high": 0.28, **settings},
        "vllm": {"mode": mode, "clip_min": low, "clip_max": high},
    }
    for name, mode, low, high, settings in (
        ("token_truncate", "token_truncate", None, 2.0, {}),
        ("token_mask", "token_mask", None, 3.0, {}),
        ("token_mask_band", "token_mask", 0.5, 3.0, {}),
        ("sequence_truncate", "sequence_truncate", None, 2.0, {}),
        ("sequence_mask", "sequence_mask", None, 3.0, {}),
        ("gspo_sequence_mask", "sequence_mask", None, 3.0,
         {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_high": 0.2}),
        ("opsm_sampler", "token_truncate", None, 2.0,
         {"loss_type": "sapo", "sapo_temperature_neg": 1.0625, "off_policy_mask_threshold": 0.1}),
        ("vespo_token_truncate", "token_truncate", None, 2.0, {"loss_type": "vespo"}),
    )
}  # fmt: skip
GENERATION_TOKENS = {"dapo_of_four": 100, "cispo_of_four": 100, "vespo_of_four": 100}
"""`num_items_in_batch` where it is not the number of tokens at hand."""

ADVANTAGE_CASES = {
    # name: (trainer, config, settings)
    "group_std": (GRPOTrainer, GRPOConfig, {"scale_rewards": "group"}),
    "group_mean": (GRPOTrainer, GRPOConfig, {"scale_rewards": "none"}),
    "batch_std": (GRPOTrainer, GRPOConfig, {"scale_rewards": "batch"}),
    "gdpo": (GRPOTrainer, GRPOConfig, {"multi_objective_aggregation": "normalize_then_sum"}),
    "gdpo_weighted": (
        GRPOTrainer, GRPOConfig, {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.25]}
    ),
    "leave_one_out": (RLOOTrainer, RLOOConfig, {}),
}  # fmt: skip


def trainer_of(settings, folder, trainer=GRPOTrainer, config=GRPOConfig, rows=6, rewards=1):
    loaded = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16), seed=0)
    args = config(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=rows,
        num_generations=3, max_completion_length=MAX_LENGTH, **{"beta": 0.0, "steps_per_generation": 1, **settings},
    )  # fmt: skip
    loaded.model.save_pretrained(folder)  # the reference model of beta > 0 is loaded by name
    made = trainer(
        model=str(folder),
        processing_class=loaded.tokenizer,
        reward_funcs=[lambda completions, **columns: [0.0 for _ in completions] for _ in range(rewards)],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["1+1="] * rows}),
    )
    made.model.train()
    made.current_gradient_accumulation_steps = 1  # the training loop sets it before each update
    return made


def loss_and_gradient(trainer, x, tokens, **more):
    leaf = x["logprobs"].clone().requires_grad_(True)
    entropy = x["entropy"].clone().requires_grad_(True)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (leaf, entropy, None)
    ids = torch.ones_like(x["mask"], dtype=torch.long)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids[:, :2],
            "prompt_mask": ids[:, :2],
            "completion_ids": ids,
            "completion_mask": x["mask"].long(),
            "advantages": x["advantage"],
            "old_per_token_logps": x["old_logprobs"],
            "ref_per_token_logps": x["reference_logprobs"],
            "num_items_in_batch": torch.tensor(tokens),
            **more,
        },
    )
    loss.backward()
    zeros = torch.zeros_like(entropy)
    assert math.isfinite(loss.item())
    return {
        "num_items_in_batch": tokens,
        "loss": loss.item(),
        "gradient": leaf.grad.tolist(),
        "entropy_gradient": (zeros if entropy.grad is None else entropy.grad).tolist(),
    }


def without_entropy(result):
    assert not any(map(any, result["entropy_gradient"]))
    return {key: value for key, value in result.items() if key != "entropy_gradient"}


def tokens_of(name, x):
    return GENERATION_TOKENS[name] if name in GENERATION_TOKENS else int(x["mask"].sum())


def basic_case(name, settings, folder):
    trainer = trainer_of(settings, folder)
    results = {key: loss_and_gradient(trainer, x, tokens_of(name, x)) for key, x in BASIC.items()}
    return {"settings": settings, "results": results}


def case(name, settings, keys, folder, *classes):
    trainer = trainer_of(settings, folder, *classes)
    results = {key: without_entropy(loss_and_gradient(trainer, x := INPUTS[key], tokens_of(name, x))) for key in keys}
    return {"settings": settings, "results": results}


def scored(trainer, x, rewards):
    """`_generate_and_score_completions` on our mask, sampler, old log-probs and rewards."""
    rows, width = x["mask"].shape
    prompts, completions, texts = [[1]] * rows, [[1] * width] * rows, [""] * rows
    mask, sampler = x["mask"].long().tolist(), x["sampler_logprobs"].tolist()
    generated = (prompts, completions, mask, texts, sampler, {}, None, [])
    if isinstance(trainer, RLOOTrainer):
        generated = (prompts, completions, texts)
    trainer._generate = lambda prompts: generated
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (x["old_logprobs"], x["entropy"], None)
    trainer._calculate_rewards = lambda *args, **kwargs: rewards
    return trainer._generate_and_score_completions([{"prompt": "1+1="}] * rows)


def sampler_case(given, folder):
    """The importance weights that TRL makes from the sampler's log-probs, then the loss under them."""
    trainer = trainer_of(given["settings"], folder)
    trainer.use_vllm = True  # vLLM itself is not needed: its log-probs are ours
    for field, value in given["vllm"].items():
        setattr(trainer, f"vllm_importance_sampling_{field}", value)
    x = INPUTS["wild"]
    out = scored(trainer, x, torch.zeros(6, 1, dtype=torch.float64))
    assert torch.equal(out["sampling_per_token_logps"].double(), x["sampler_logprobs"])
    keep = ("importance_sampling_ratio", "sampling_per_token_logps", "tool_mask")
    result = loss_and_gradient(trainer, x, int(out["num_items_in_batch"]), **{key: out[key] for key in keep})
    return {**given, "weight": out["importance_sampling_ratio"].tolist(), "results": {"wild": without_entropy(result)}}


def advantage_case(trainer, config, settings, folder):
    results = {}
    for key in ("complete", "missing"):
        given = SCORED[key]
        rows = len(given["group"])
        extra = {"steps_per_generation": 1} if config is GRPOConfig else {}
        made = trainer_of({**settings, **extra}, folder, trainer, config, rows, rewards=2)
        made.reward_weights = made.reward_weights.double()
        zeros = torch.zeros(rows, MAX_LENGTH, dtype=torch.float64)
        x = {"mask": zeros == 0, "sampler_logprobs": zeros, "old_logprobs": zeros, "entropy": zeros}
        results[key] = scored(made, x, given["rewards"].clone())["advantages"].tolist()
    return {"trainer": trainer.__name__, "settings": settings, "results": results}


def rloo_case(folder):
    """RLOOTrainer's loss: the product ratio, clipped."""
    x, results = INPUTS["far"], {}
    trainer = trainer_of({"epsilon": 0.2, "epsilon_high": 0.2}, folder, RLOOTrainer, RLOOConfig)
    old = (x["old_logprobs"] * x["mask"]).sum(dim=1)
    for key, value in (("far", old), ("on_policy", (x["logprobs"] * x["mask"]).sum(dim=1))):
        results[key] = without_entropy(loss_and_gradient(trainer, x, 0, old_logps=value))
    return {"settings": {"epsilon": 0.2, "epsilon_high": 0.2}, "results": results}


def dpo_case(folder):
    """DPOTrainer's loss on the three pairs of "pairs": the row of the higher reward is the chosen one."""
    x = INPUTS["pairs"]
    chosen, rejected = [], []
    for group in range(3):
        first, second = (x["group_of_two"] == group).nonzero()[:, 0].tolist()
        if x["rewards"][first] < x["rewards"][second]:
            first, second = second, first
        if x["rewards"][first] > x["rewards"][second]:
            chosen.append(first)
            rejected.append(second)
    rows = torch.tensor(chosen + rejected)
    loaded = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16), seed=0)
    loaded.model.save_pretrained(folder)
    trainer = DPOTrainer(
        model=str(folder),
        args=DPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", beta=0.1),
        processing_class=loaded.tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["1"], "chosen": ["2"], "rejected": ["3"]}),
    )
    leaf = x["logprobs"].clone().requires_grad_(True)
    tokens = torch.zeros(len(rows), MAX_LENGTH)  # metrics read these
    metrics = {"entropy": tokens, "mean_logits": tokens, "is_top1": tokens.bool()}
    score = lambda logprobs: SimpleNamespace(log_probs=(logprobs * x["mask"])[rows], **metrics)  # noqa: E731
    trainer.ref_model = lambda **kwargs: score(x["reference_logprobs"])
    ids = torch.ones(len(rows), MAX_LENGTH + 1, dtype=torch.long)
    mask = torch.nn.functional.pad(x["mask"][rows].long(), (1, 0))
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}
    loss = trainer._compute_loss(lambda **kwargs: score(leaf), inputs, return_outputs=False)
    loss.backward()
    result = {"chosen": chosen, "rejected": rejected, "loss": loss.item(), "gradient": leaf.grad.tolist()}
    return {"settings": {"loss_type": "sigmoid", "beta": 0.1}, "results": {"pairs": result}}


def adaptive_entropy_case(folder):
    """Seven updates under Skywork-OR1's controller, the third of two micro-batches."""
    settings = {
        "loss_type": "dapo", "epsilon_high": 0.28, "use_adaptive_entropy": True, "entropy_coef": 0.01,
        "entropy_coef_delta": 0.005, "entropy_coef_max": 0.02, "entropy_target": 0.75,
    }  # fmt: skip
    trainer, x, updates = trainer_of(settings, folder), INPUTS["far"], []
    for factors in ([1.0], [0.5], [0.4, 0.6], [0.5], [2.0], [1.0], [0.5]):
        given = [{**x, "entropy": factor * x["entropy"]} for factor in factors]
        trainer.current_gradient_accumulation_steps = len(given)
        losses = []
        for i, micro_batch in enumerate(given):
            trainer.accelerator.gradient_state._set_sync_gradients(i == len(given) - 1)
            losses.append(loss_and_gradient(trainer, micro_batch, int(x["mask"].sum())))
        state = {"coefficient": trainer.entropy_coef, "entropy": trainer._last_world_entropy}
        entropy_gradient = [loss["entropy_gradient"] for loss in losses]
        updates.append({"factors": factors, "after": state, "entropy_gradient": entropy_gradient})
    return {"settings": settings, "input": "far", "updates": updates}


def optimal_values(folder):
    """A*-PO's stage one: V* of three prompts from four rewards each."""
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 0.5, 0.25, 0]], dtype=torch.float64)
    prompts = ["1+1=", "1+2=", "1+3="]
    loaded = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16), seed=0)
    loaded.tokenizer.padding_side = "left"
    args = A2POConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=3,
        num_value_samples=4, max_completion_length=2, beta1=0.5, dataloader_pin_memory=False,
        filter_all_incorrect=False,
    )  # fmt: skip
    trainer = A2POTrainer(
        model=loaded.model, processing_class=loaded.tokenizer, reward_funcs=lambda **columns: [], args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )  # fmt: skip
    trainer._calculate_rewards = lambda *args, **kwargs: rewards.flatten()
    trainer._estimate_optimal_values()
    values = [trainer._optimal_values[prompt] for prompt in prompts]
    return {"settings": {"beta1": args.beta1}, "rewards": rewards.tolist(), "values": values}


def main():
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: basic_case(name, settings, folder) for name, settings in BASIC_CASES.items()}
        cases |= {name: case(name, *given, folder) for name, given in CASES.items()}
        cases |= {name: case(name, *given, folder, GMPOTrainer, GMPOConfig) for name, given in GMPO_CASES.items()}
        cases |= {name: sampler_case(given, folder) for name, given in SAMPLER_CASES.items()}
        cases |= {"rloo": rloo_case(folder), "dpo": dpo_case(folder)}
        advantages = {name: advantage_case(*given, folder) for name, given in ADVANTAGE_CASES.items()}
        adaptive, values = adaptive_entropy_case(folder), optimal_values(folder)
    packages = ("trl", "torch", "transformers", "accelerate")
    TARGET.write_text(
        json.dumps(
            {
                "what": "loss and gradient of trl.GRPOTrainer._compute_loss on fixed log-probs; see make_trl.py",
                "date": datetime.date.today().isoformat(),
                "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
                "max_completion_length": MAX_LENGTH,
                "inputs": listed({key: x for key, x in INPUTS.items() if key != "calm_pairs"}),
                "scored": listed({key: SCORED[key] for key in ("complete", "missing")}),
                "cases": cases,
                "advantages": advantages,
                "adaptive_entropy": adaptive,
                "a2po_values": values,
            },
        )
        + "\n"
    )
    print(f"wrote {TARGET.name}: {len(cases)} losses, {len(advantages)} advantages")


if __name__ == "__main__":
    main()
