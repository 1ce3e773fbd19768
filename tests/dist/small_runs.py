"""Settings of small runs that two ranks and one process both make."""

from test_resume import SCHEDULE, VARIANTS

SERVED = {"name": "vllm", "url": "http://127.0.0.1:1"}
"""What `rank.py` has a stand-in for."""

AHEAD = (
    ("sampler", SERVED),
    ("max_policy_lag", 1),
    ("optimizer.lr", 0.02),
    ("evaluation.prompts", 2),
    ("checkpoints.keep_rollouts", 0),
)

CURVE = (("steps", 20), ("terms", [{"name": "reference_kl"}]), ("optimizer.max_grad_norm", 0.05))

RUNS = {
    "clipped, compared": (("steps", 3), *CURVE[1:]),
    "lora": VARIANTS["lora"],
    "turns": VARIANTS["turns with an environment"],
    "phases": SCHEDULE,
    "cold": VARIANTS["cold start"],
    "pairs": VARIANTS["pairs of a file"],
    "a rounded sampler": VARIANTS["experts, R3, a sampler in bf16, epochs"],
    "replicated": (("ranks.sharding", "none"), ("collector.refill", True)),
    "split": (("ranks.tensor_parallel", 2), ("evaluation.prompts", 2), *CURVE[1:]),
    "tokens": (("ranks.context_parallel", 2), ("policy.layout", "shared_prefix"), *CURVE[1:]),
    "tokens, ahead": (("ranks.context_parallel", 2), ("sampler", "process"), ("max_policy_lag", 1), ("lora.rank", 2)),
    "split, lora": (("ranks.tensor_parallel", 2), *VARIANTS["lora"]),
    "served": (("sampler", SERVED), ("optimizer.lr", 0.02)),
    "beside": (("sampler", "process"), ("max_policy_lag", 1), ("optimizer.lr", 0.02)),
    "apart": (
        ("sampler", "process"),
        ("policy", {"name": "causal_lm", "sampler_dtype": "bfloat16"}),
        ("old_logprobs", "policy"),
    ),
    "beside, replicated": (("ranks.sharding", "none"), ("sampler", "process"), ("max_policy_lag", 1), ("lora.rank", 2)),
    "stopped": (*AHEAD, ("max_policy_lag", 2), ("steps", 6)),
    "lost": (*AHEAD, ("checkpoints.every", 4)),
    "http": (*AHEAD, ("max_policy_lag", 2)),
    "split, half": (("ranks.tensor_parallel", 2), ("steps", 2), ("lora.rank", 2)),
    "half": (("steps", 2),),
    "curve": CURVE,
}
