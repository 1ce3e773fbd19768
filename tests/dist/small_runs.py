"""Settings of small runs that two ranks and one process both make."""

from test_resume import SCHEDULE, VARIANTS

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
    "served": (("sampler", {"name": "vllm", "url": "http://127.0.0.1:1"}), ("optimizer.lr", 0.02)),
    "half": (("steps", 2),),
    "curve": CURVE,
}
