"""Completion tokens per second of gspo's in-process sampler, `generate` and transformers' continuous batching.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/sampler.py [--rounds 5] [--threads 1] [--dtype bfloat16]
        [--cases 64x64,64x256,512x64,512x256] [--prompts 4] [--group 8] [--sides gspo,generate,continuous]

SmolLM2-135M-Instruct; `--prompts` prompts of equal length (random ids; equal, because padding would slow `generate`
and not the others), `--group` completions of each, temperature 0.7, no top-k or top-p. The sides take turns in one
process, round by round, so that a busy machine slows all alike; medians after one warm-up.

Completions are ragged and equally long on all sides: row i gets lengths[i] tokens, spread evenly between an eighth of
the longest and the longest, in a shuffled order that is the same everywhere. Nobody has a stop token; a row ends
because it has its tokens, told to each side in the way it has for that:
- gspo: the limit of each completion under way (`_Wave.limits`), in place of one limit for all. What it then does is
  what it does at a stop token. It also returns log-probabilities, which the others are not asked for.
- generate: `num_return_sequences`, its default cache, and a StoppingCriteria that returns the mask of the rows that
  have their tokens: the way in which a stop token is told to its loop.
- continuous batching: `max_new_tokens` of each request, one request per completion; its settings as they come (prefix
  sharing by full blocks among them), but for a fifth of the free memory as its cache. Its manager, which takes seconds
  to make, is made before the clock of its turn starts and ends after it stops.

Each side has the same weights in a model of its own. The timed region: from token ids of the prompts to token ids of
all completions, prefill included.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.continuous_batching.utils import WorkloadHints

from gspo.models import SMOLLM2, load_model
from gspo.policies import Network
from gspo.samplers import SampleRequest
from gspo.samplers.decoding import SharedPrompts
from gspo.samplers.in_process import _Wave
from gspo.sampling import Sampling

TEMPERATURE = 0.7
TARGET = Path(__file__).parent / "out" / "sampler.json"
NAMES = {"gspo": "gspo InProcess", "generate": "generate", "continuous": "continuous batching"}


def case_of(text: str, arguments: argparse.Namespace) -> tuple[list[list[int]], np.ndarray]:
    """ "512x64" -> (prompts, the length of each completion)."""
    prompt_tokens, longest = (int(x) for x in text.split("x"))
    draw = np.random.default_rng(0)
    prompts = draw.integers(100, 40_000, (arguments.prompts, prompt_tokens)).tolist()
    lengths = np.linspace(longest / 8, longest, arguments.prompts * arguments.group).round().astype(int)
    return prompts, draw.permutation(lengths)


@contextmanager
def gspo_side(model: Any, prompts: list[list[int]], lengths: np.ndarray) -> Iterator[Callable[[], int]]:
    network, group = Network(model), len(lengths) // len(prompts)
    sampling = Sampling(temperature=TEMPERATURE, max_completion_tokens=int(lengths.max()))
    requests = [
        SampleRequest(prompt_ids=tuple(ids), n=group, seed=0, step=0, prompt_id=i, sampling=sampling)
        for i, ids in enumerate(prompts)
    ]

    def run() -> int:
        decoder = SharedPrompts(network, len(prompts[0]), sampling.max_completion_tokens)
        wave = _Wave(requests, sampling, decoder, np.array([-1]), len(lengths))
        wave.limits = lengths
        assert len(list(wave.groups())) == len(prompts) and (wave.lengths == lengths).all()
        return int(wave.lengths.sum())

    yield run


class HasItsTokens(StoppingCriteria):
    def __init__(self, prompt_tokens: int, lengths: np.ndarray) -> None:
        self.until = torch.from_numpy(prompt_tokens + lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.until.to(input_ids.device)


@contextmanager
def generate_side(model: Any, prompts: list[list[int]], lengths: np.ndarray) -> Iterator[Callable[[], int]]:
    ids = torch.tensor(prompts)
    config = generation_config(max_new_tokens=int(lengths.max()), num_return_sequences=len(lengths) // len(prompts))

    @torch.no_grad()
    def run() -> int:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([HasItsTokens(ids.shape[1], lengths)]),
        )
        assert out.shape == (len(lengths), ids.shape[1] + lengths.max())
        return int(lengths.sum())

    yield run


@contextmanager
def continuous_side(model: Any, prompts: list[list[int]], lengths: np.ndarray) -> Iterator[Callable[[], int]]:
    group, longest = len(lengths) // len(prompts), int(lengths.max())
    config = generation_config(max_new_tokens=longest)
    hints = WorkloadHints(max_prompt_length=len(prompts[0]), max_generated_length=longest, num_requests=len(lengths))
    settings = ContinuousBatchingConfig(max_memory_percent=0.2)

    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=settings, workload_hints=hints
    ) as manager:

        def run() -> int:
            total = 0
            for i, length in enumerate(lengths.tolist()):
                manager.add_request(prompts[i // group], max_new_tokens=length)
            for _ in lengths:
                while (result := manager.get_result(timeout=1)) is None or not result.is_finished():
                    assert manager.is_running()
                total += len(result.generated_tokens)
            return total

        yield run


def generation_config(**given: Any) -> GenerationConfig:
    return GenerationConfig(do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, pad_token_id=0, **given)


SIDES = {"gspo": gspo_side, "generate": generate_side, "continuous": continuous_side}


def measure(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    prompts, lengths = case_of(case, arguments)
    names = arguments.sides.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens = int(lengths.sum())
    models = {name: load_model(SMOLLM2, dtype=arguments.dtype, device="cpu").model for name in names}
    for turn in range(arguments.rounds + 1):
        for name, model in models.items():
            gc.collect()
            with SIDES[name](model, prompts, lengths) as run:
                started, cpu_started = time.perf_counter(), time.process_time()
                made = run()
                took, cpu_took = time.perf_counter() - started, time.process_time() - cpu_started
            assert made == tokens, f"{name} made {made} of {tokens} tokens"
            if turn:
                seconds[name].append(took)
                cpu_seconds[name].append(cpu_took)
                print(f"{case} round {turn} {name}: {took:.2f} s", flush=True)
    sides = {
        name: {
            "seconds": seconds[name],
            "median": statistics.median(seconds[name]),
            "cpu_median": statistics.median(cpu_seconds[name]),
            "tokens_per_second": tokens / statistics.median(seconds[name]),
        }
        for name in names
    }
    return {"completion_tokens": tokens, "rows": len(lengths), "mean_length": float(lengths.mean()), "sides": sides}


def report(result: dict[str, Any]) -> None:
    table = Table(title="Completion tokens per second (medians; ratio: gspo / that row)")
    for column in ("prompt x longest completion", "", "tokens/s", "wall s", "ratio", "CPU s", "ratio"):
        table.add_column(column, justify="left" if column in ("prompt x longest completion", "") else "right")
    for case, measured in result["cases"].items():
        ours = measured["sides"]["gspo"]
        for name, side in measured["sides"].items():
            table.add_row(
                case if name == "gspo" else "",
                NAMES[name],
                f"{side['tokens_per_second']:.0f}",
                f"{side['median']:.2f}",
                f"{side['median'] / ours['median']:.2f}",
                f"{side['cpu_median']:.2f}",
                f"{side['cpu_median'] / ours['cpu_median']:.2f}",
            )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--cases", default="64x64,64x256,512x64,512x256", help="prompt x longest completion")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--sides", default="gspo,generate,continuous")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(arguments.threads)
    cases = {case: measure(case, arguments) for case in arguments.cases.split(",")}
    result = {
        "cases": cases,
        "settings": {
            "model": SMOLLM2, "dtype": arguments.dtype, "prompts": arguments.prompts, "group": arguments.group,
            "temperature": TEMPERATURE, "rounds": arguments.rounds, "threads": arguments.threads,
            "machine": platform.machine(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("gspo", "torch", "transformers")},
        },
    }  # fmt: skip
    report(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
