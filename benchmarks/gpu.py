"""One GSPO update on a GPU: seconds, model FLOPs utilisation and peak memory, against padded rows with full logits.

    python benchmarks/gpu.py [--shape qwen3-0.6b|qwen3-1.7b] [--rounds 5]

Random weights in bf16 (gspo keeps float32 masters), 8 prompts of 512 tokens x 8 completions of 256 to 1,024 tokens.
Sides, taking turns; medians:

- shared: gspo's update with its default layout; packed: with `layout = "packed"`, which computes the tokens that
  `padded` does but for its padding; both forward, backward, AdamW.
- padded: the update as a trainer without these writes it: padded rows in micro-batches of as many tokens, logits of all
  completion positions, float32 `log_softmax`, the same loss; AdamW on bf16 weights.

Utilisation counts 6 multiply-adds' FLOPs per weight and token that the work needs (padding and repeated prompts of
`padded` are waste, not work; of `shared` only the tokens it really computes) and 12 per seen query-key pair and head
width, over the device's dense bf16 peak: known for the devices in PEAK, else measured by one large product.
`--shape tiny --device cpu` runs everything on a small scale, to see that it works.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

import gspo
from gspo.policies import Network, TokenScorer, TrainedPolicy
from gspo.policies.master import AdamW
from gspo.policies.prefixes import MIN_SHARED, pack
from gspo.sampling import Sampling
from gspo.training.batch import assemble
from gspo.types import Sample, Step

TARGET = Path(__file__).parent / "out" / "gpu.json"
PEAK = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
"""Dense bf16 FLOP/s of the data sheets."""
SHAPES = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151_936},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "vocab_size": 151_936},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512},
}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
TINY_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def model_of(shape: str, device: torch.device) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    heads = TINY_HEADS if shape == "tiny" else HEADS
    config = Qwen3Config(**SHAPES[shape], **heads, tie_word_embeddings=True, max_position_embeddings=4096)
    with device:
        return Qwen3ForCausalLM(config).to(torch.bfloat16).eval()


def step_of(vocabulary: int, device: torch.device, is_small: bool) -> Step:
    draw = random.Random(0)
    prompts, prompt, shortest, longest = (2, 32, 8, 24) if is_small else (8, 512, 256, 1024)
    ids = lambda n: tuple(draw.randrange(vocabulary) for _ in range(n))  # noqa: E731
    rows: list[Sample] = []
    for group in range(prompts):
        shared = ids(prompt)
        for index in range(8):
            length = draw.randrange(shortest, longest)
            rows.append(
                Sample(
                    group_id=group,
                    rollout_id=len(rows),
                    index=index,
                    prompt_ids=shared,
                    completion_ids=ids(length),
                    sampler_logprobs=(-12.0,) * length,
                    advantage=draw.uniform(-1, 1),
                    reward=0.0,
                    is_trained=True,
                )
            )
    return assemble(rows, device)


def ours(model: Qwen3ForCausalLM, layout: Any, budget: int) -> tuple[Callable[[Step], None], Network]:
    network = Network(model)
    scorer = TokenScorer(network=network, scoring=Sampling(), micro_batch_tokens=budget, layout=layout)
    policy = TrainedPolicy(scorer, AdamW(lr=1e-6))
    objective = gspo.GRPO(clip_low=0.99, clip_high=1e9)  # no row is clipped out of the work

    def update(step: Step) -> None:
        policy.forward_backward(step, [objective.weights(step, objective.counts(step))], [objective])
        policy.optim_step(1e-6)

    return update, network


def padded(model: Qwen3ForCausalLM, budget: int) -> Callable[[Step], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def update(step: Step) -> None:
        prompts, completions = step.payload.prompt, step.payload.completion
        width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        rows = max(1, budget // width)
        for start in range(0, len(prompts), rows):
            some = range(start, min(start + rows, len(prompts)))
            ids = torch.zeros((len(some), width), dtype=torch.long)
            mask = torch.zeros((len(some), width), dtype=torch.bool)
            for r, i in enumerate(some):
                tokens = prompts[i] + completions[i]
                ids[r, : len(tokens)] = torch.tensor(tokens)
                mask[r, len(prompts[i]) : len(tokens)] = True
            ids, mask = ids.to(model.device), mask.to(model.device)
            first = min(len(prompts[i]) for i in some)
            logits = model(input_ids=ids, use_cache=False).logits[:, first - 1 : -1].float()
            scored = logits.log_softmax(dim=-1).gather(2, ids[:, first:, None])[..., 0]
            live = mask[:, first:]
            ratio = (scored - scored.detach()).exp()
            per_row = (ratio * live).sum(dim=1) / live.sum(dim=1)
            (-(per_row * step.advantage[list(some)]).sum() / len(prompts)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def flops(network: Network, step: Step, layout: str) -> float:
    """What an update needs: forward and backward of each token it has to compute, and of each pair that is seen."""
    tails = [completion[:-1] for completion in step.payload.completion]
    packed = pack(step.payload.prompt, tails, MIN_SHARED if layout == "shared_prefix" else None)
    pairs = int((packed.end - np.arange(len(packed))).sum())
    shape = network.shape
    head = int(step.mask.sum()) * network.vocabulary * network.config.hidden_size
    return 6.0 * (shape.layers * (len(packed) * shape.linear + pairs * shape.pair) + head)


def peak_flops(device: torch.device) -> tuple[float, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if name in PEAK:
        return PEAK[name], name
    size = 4096 if device.type == "cuda" else 1024
    x = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    times = [seconds_of(lambda: x @ x, device) for _ in range(5)]
    return 2 * size**3 / min(times), name


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    step = step_of(SHAPES[arguments.shape]["vocab_size"], device, arguments.shape == "tiny")
    budget = arguments.micro_batch_tokens
    sides: dict[str, Callable[[Step], None]] = {}
    work: dict[str, float] = {}
    for name, layout in (("shared", "shared_prefix"), ("packed", "packed")):
        sides[name], network = ours(model_of(arguments.shape, device), layout, budget)
        work[name] = flops(network, step, layout)
    sides["padded"] = padded(model_of(arguments.shape, device), budget)
    work["padded"] = work["packed"]
    peak, device_name = peak_flops(device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    memory: dict[str, int] = {}
    for turn in range(arguments.rounds + 1):
        for name, side in sides.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            taken = seconds_of(lambda side=side: side(step), device)
            if turn:  # the first compiles and makes optimizer state
                seconds[name].append(taken)
            if device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated(device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table(title=f"{arguments.shape}, one update, {device_name}")
    for column in ("", "seconds", "padded / it", "FLOPs utilisation", "peak GiB (all sides' weights in it)"):
        table.add_column(column, justify="left" if not column else "right")
    for name in sides:
        table.add_row(
            name,
            f"{median[name]:.3f}",
            f"{median['padded'] / median[name]:.2f}",
            f"{work[name] / median[name] / peak:.0%}",
            f"{memory.get(name, 0) / 2**30:.1f}",
        )
    Console(width=110).print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "device": device_name, "shape": arguments.shape, "seconds": seconds, "memory": memory, "flops": work,
        "peak_flops": peak, "micro_batch_tokens": budget,
        "versions": {name: metadata.version(name) for name in ("gspo", "torch", "transformers")},
    }  # fmt: skip
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
