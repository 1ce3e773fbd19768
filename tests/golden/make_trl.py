"""Provenance of trl_1_16.json: TRL's own loss, called on fixed log-probs, with its gradient. Not a test.

    python3 -m venv /tmp/trlenv && /tmp/trlenv/bin/pip install -r benchmarks/requirements-trl.txt
    /tmp/trlenv/bin/pip install --no-deps -e .
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 /tmp/trlenv/bin/python tests/golden/make_trl.py

A GRPOTrainer is built around an untrained tiny model; only its log-prob function is replaced, by one that returns
ours as a float64 leaf (and entropies as another). Everything behind that is `GRPOTrainer._compute_loss` as installed.
"""

import datetime
import json
import math
import platform
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from gspo.models import TinyConfig, tiny_model

TARGET = Path(__file__).with_name("trl_1_16.json")
MAX_LENGTH = 9

CASES = {
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
GENERATION_TOKENS = {"dapo_of_four": 100}
"""`num_items_in_batch` where it is not the number of tokens at hand."""


def inputs(seed, spread, holes):
    """Six rows, ragged, the third without a trained token; advantages of both signs and one 0."""
    make = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    mask = torch.arange(MAX_LENGTH)[None] < torch.tensor([9, 4, 0, 1, 7, 6])[:, None]
    if holes:
        mask[0, 3:5] = mask[4, 0] = False
    old = -normal(6, MAX_LENGTH).abs() - 0.05
    return {
        "logprobs": old + spread * normal(6, MAX_LENGTH),
        "old_logprobs": old,
        "reference_logprobs": old + 0.2 * normal(6, MAX_LENGTH),
        "entropy": normal(6, MAX_LENGTH).abs(),
        "mask": mask,
        "advantage": torch.tensor([1.3, -0.7, 0.4, -1.1, 0.0, 0.9], dtype=torch.float64),
    }


INPUTS = {
    "far": inputs(seed=3, spread=0.3, holes=False),
    "near": inputs(seed=1, spread=2e-3, holes=False),
    "holes": inputs(seed=2, spread=0.3, holes=True),
}


def trainer_of(settings, folder):
    loaded = tiny_model(TinyConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16), seed=0)
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=6,
        num_generations=3, max_completion_length=MAX_LENGTH, **{"beta": 0.0, "steps_per_generation": 1, **settings},
    )  # fmt: skip
    loaded.model.save_pretrained(folder)  # the reference model of beta > 0 is loaded by name
    trainer = GRPOTrainer(
        model=str(folder),
        processing_class=loaded.tokenizer,
        reward_funcs=lambda completions, **columns: [0.0 for _ in completions],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["1+1="] * 6}),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the training loop sets it before each update
    return trainer


def loss_and_gradient(trainer, x, tokens):
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


def main():
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in CASES.items():
            trainer = trainer_of(settings, folder)
            results = {}
            for key, x in INPUTS.items():
                tokens = GENERATION_TOKENS[name] if name in GENERATION_TOKENS else int(x["mask"].sum())
                results[key] = loss_and_gradient(trainer, x, tokens)
            cases[name] = {"settings": settings, "results": results}
    packages = ("trl", "torch", "transformers", "accelerate")
    TARGET.write_text(
        json.dumps(
            {
                "what": "loss and gradient of trl.GRPOTrainer._compute_loss on fixed log-probs; see make_trl.py",
                "date": datetime.date.today().isoformat(),
                "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
                "max_completion_length": MAX_LENGTH,
                "inputs": {key: {n: t.tolist() for n, t in x.items()} for key, x in INPUTS.items()},
                "cases": cases,
            },
        )
        + "\n"
    )
    print(f"wrote {TARGET}: {len(cases)} cases x {len(INPUTS)} inputs")


if __name__ == "__main__":
    main()
