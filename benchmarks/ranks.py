"""Two ranks over gloo, in each of three layouts, against one process: gradients, 20 steps, memory by rank.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/ranks.py [--steps 20] [--width 512] [--length 2048]

- gradients: the tiny model in float32, one update of GSPO on 4 groups of 4 with random advantages, before clipping;
  the largest difference of an entry, beside the largest entry.
- curve: the embedded task with a KL to the reference and clipping at work, the same seed; the largest difference of any
  number in metrics.jsonl that is no time, and of any weight of the exported models.
- memory: a wider tiny model after one update. "held": bytes of master weights and both moments on the rank; "peak": the
  most memory that the process has had (resident), the interpreter and its libraries included; "growth": by how much it
  rose since before the model was made. The model is made whole on every rank before it is sharded.

- long: the same for one row of `--length` tokens; "growth" is by how much the update raised the peak.

"shards" is FSDP2 over both ranks; "split" is ranks.tensor_parallel = 2, "tokens" ranks.context_parallel = 2: there both
see the same rows. Every measurement is a process of its own. Results go to benchmarks/out/ranks.json.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from gspo.dist.building import policy_of
from gspo.dist.config import RanksConfig
from gspo.dist.ranks import ALONE, Ranks, Team
from gspo.functional import _step
from gspo.models import TinyConfig, tiny_model
from gspo.objectives import GSPO
from gspo.policies.causal_lm import TokenScorer
from gspo.policies.master import AdamW
from gspo.policies.network import Network
from gspo.policies.payload import Payload
from gspo.sampling import Sampling
from gspo.settings import apply_overrides, validate
from gspo.training.parts import Given
from gspo.training.run import console_of, start
from gspo.types import Step

TARGET = Path(__file__).parent / "out" / "ranks.json"
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "one": (1, {}),
    "shards": (2, {}),
    "split": (2, {"tensor_parallel": 2}),
    "tokens": (2, {"context_parallel": 2}),
}
"""Ranks, and their settings."""
SMALL = TinyConfig()
CURVE = {
    "name": "curve",
    "device": "cpu",
    "prompts_per_step": 8,
    "group_size": 8,
    "updates_per_step": 2,
    "sampling": {"max_completion_tokens": 6},
    "rewards": [{"name": "length", "options": {"target_tokens": 3}}],
    "terms": [{"name": "reference_kl"}],
    "optimizer": {"lr": 1e-4, "max_grad_norm": 0.5},
    "evaluation": {"every": 10, "prompts": 32},
    "trackers": [],
}


def some_step(groups: int = 4, each: int = 4, prompt: int = 8, longest: int = 16, shortest: int = 1) -> Step:
    """Random prompts and ragged completions with random advantages."""
    draw = np.random.default_rng(0)
    prompts = [tuple(draw.integers(2, 15, prompt).tolist()) for _ in range(groups) for _ in range(1)]
    lengths = draw.integers(shortest, longest + 1, groups * each)
    completions = [tuple(draw.integers(1, 15, n).tolist()) for n in lengths]
    mask = torch.arange(int(lengths.max()))[None] < torch.from_numpy(lengths)[:, None]
    advantage = torch.from_numpy(draw.standard_normal(groups * each)).float()
    group = torch.arange(groups).repeat_interleave(each)
    step = _step(mask, advantage, torch.full(mask.shape, -2.8), group, None, None, None, None)
    rows = tuple(prompts[g] for g in group.tolist())
    return Step(**{**vars(step), "payload": Payload(rows, tuple(completions))})


def updated(
    ranks: Ranks, settings: RanksConfig, shape: TinyConfig, found: dict[str, Any], gradients: bool, length: int
) -> None:
    """One update; the gradients before it, or the memory behind it: with a `length`, of one row."""
    before = peak_now()
    scorer = TokenScorer(network=Network(tiny_model(shape, 0).model.eval()), scoring=Sampling(), micro_batch_tokens=256)
    policy = policy_of(scorer, AdamW(lr=1e-4), ranks, settings, torch.device("cpu"))
    step, objective = some_step(), GSPO(clip_low=10.0, clip_high=10.0)
    if length:
        step, before = some_step(1, 1, longest=length, shortest=length), peak_now()
    policy.forward_backward(step, [objective.weights(step, objective.counts(step))], (objective,))
    if gradients:
        weights = policy.weights
        found["norm"] = weights.total_norm(weights.masters.values()).item()  # gradients of all ranks are added up here
        found["gradients"] = {n: whole(m.grad) for n, m in weights.masters.items() if m.grad is not None}
        return
    policy.optim_step(1e-4)
    held = [own(tensor).nbytes for tensor in policy.weights.state().values()]
    peak = peak_now()
    parameters = sum(p.numel() for p in policy.weights.masters.values())
    found["memory"] = {"parameters": parameters, "held": sum(held), "peak": peak, "growth": peak - before}


def peak_now() -> int:
    """Most bytes that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def own(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def measure(what: str, layout: str, rank: int, folder: Path, arguments: argparse.Namespace) -> None:
    """One rank of one measurement; what it found goes to FOLDER/WHAT-LAYOUT-RANK.pt."""
    torch.set_num_threads(1)
    size, given = LAYOUTS[layout]
    ranks = Team(rank, size, local_size=size, meeting=f"file://{folder}/meeting-{what}-{layout}") if size > 1 else ALONE
    settings = RanksConfig(deadline=300.0, **given)
    ranks.open(settings, "cpu")
    found: dict[str, Any] = {}
    if what == "curve":
        asked = {"steps": arguments.steps, "folder": str(folder / f"curve-{layout}"), "ranks": asdict(settings)}
        config = validate(apply_overrides({**CURVE, **asked}, ()))
        start(config, Given(ranks=ranks), console_of(config, ranks, True))
    else:
        wide = TinyConfig(
            hidden_size=arguments.width, layers=arguments.layers, heads=8, intermediate_size=3 * arguments.width
        )
        length = arguments.length if what == "long" else 0
        updated(ranks, settings, SMALL if what == "gradients" else wide, found, what == "gradients", length)
    torch.save(found, folder / f"{what}-{layout}-{rank}.pt")


def run(what: str, layout: str, folder: Path, words: list[str]) -> list[dict[str, Any]]:
    """What each rank found."""
    size, _ = LAYOUTS[layout]
    command = [sys.executable, __file__, *words, "--measure", what, "--layout", layout, "--folder", str(folder)]
    processes = [subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.DEVNULL) for rank in range(size)]
    if any([process.wait() for process in processes]):
        raise SystemExit(f"{what} failed: {layout}")
    return [torch.load(folder / f"{what}-{layout}-{rank}.pt") for rank in range(size)]


def compared(folder: Path, words: list[str]) -> dict[str, Any]:
    """Of each layout its own numbers, and the largest differences to one process."""
    found: dict[str, Any] = {}
    one = run("gradients", "one", folder, words)[0]["gradients"]
    for layout in LAYOUTS:
        own = run("gradients", layout, folder, words)[0]
        run("curve", layout, folder, words)
        found[layout] = {
            "norm": own["norm"],
            "largest": max(g.abs().max().item() for g in one.values()),
            "difference": max((own["gradients"][name] - g).abs().max().item() for name, g in one.items()),
            "curve": curves(folder / "curve-one", folder / f"curve-{layout}"),
            "memory": [each["memory"] for each in run("memory", layout, folder, words)],
            "long": [each["memory"] for each in run("long", layout, folder, words)],
        }
    return found


def curves(one: Path, two: Path) -> dict[str, Any]:
    """Largest differences, and where."""
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    is_timing = lambda key: key.startswith("time/") or key in ("step_time", "tokens_per_second")  # noqa: E731
    gaps = [
        (abs(a[key] - b[key]), key)
        for a, b in zip(*lines, strict=True)
        for key in a
        if not is_timing(key) and isinstance(a[key], int | float) and math.isfinite(a[key])
    ]
    left, right = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    gap, name = max(gaps)
    return {
        "steps": lines[0][-1]["step"],
        "difference": gap,
        "metric": name,
        "weights": max((left[name] - right[name]).abs().max().item() for name in left),
        "reward": [line["reward"] for line in lines[1] if "reward" in line],
    }


def show(found: dict[str, Any]) -> Table:
    each = [found[layout] for layout in LAYOUTS]
    table = Table("measure", "one process", *(f"two ranks, {layout}" for layout in list(LAYOUTS)[1:]), box=None)
    table.add_row("gradient norm", *(f"{own['norm']:.6g}" for own in each))
    entry = f"largest gap of an entry (of {each[0]['largest']:.2g})"
    table.add_row(entry, *(f"{own['difference']:.1e}" for own in each))
    steps = each[0]["curve"]["steps"]
    table.add_row(f"reward at step {steps}", *(f"{own['curve']['reward'][-1]:.4f}" for own in each))
    table.add_row("largest gap of a metric", *(f"{own['curve']['difference']:.1e}" for own in each))
    table.add_row("largest gap of a weight", *(f"{own['curve']['weights']:.1e}" for own in each))
    for name, label in (("held", "weights and moments, MB"), ("growth", "peak growth, MB"), ("peak", "peak, MB")):
        table.add_row(label, *(" + ".join(f"{rank[name] / 1e6:.1f}" for rank in own["memory"]) for own in each))
    table.add_row(
        "peak growth, one long row, MB", *(" + ".join(f"{r['growth'] / 1e6:.0f}" for r in own["long"]) for own in each)
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=512, help="of the model whose memory is measured")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048, help="tokens of the long row")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--layout", default="one", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.layout, arguments.rank, arguments.folder, arguments)
    words = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "width", "layers", "length")]
    with tempfile.TemporaryDirectory() as folder:
        found = compared(Path(folder), words)
    found["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "torch": metadata.version("torch")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1))
    Console().print(show(found))


if __name__ == "__main__":
    main()
