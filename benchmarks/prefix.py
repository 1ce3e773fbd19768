"""Shared prefixes against repeated ones: seconds and peak memory of forward and backward over one group.

    OMP_NUM_THREADS=1 python benchmarks/prefix.py [--rounds 5] [--threads 1] [--layers 6] [--response 64]

One prompt of P tokens and G completions of R tokens each through a Llama of SmolLM2's width (random weights, float32,
six of its thirty layers, 4,096 words), up to the gradient of every parameter of the sum of weighted log-probs. Sides:

- repeated: gspo's `padded` layout. All rows have P + R tokens, so nothing is padding; the model's own attention.
- shared: gspo's `shared_prefix`, what its runs do by default.
- package: `prefix-grouper` from the package index, the reference implementation of Prefix Grouper (2506.05433), on the
  same model through transformers' AttentionInterface. Handed sdpa, as it comes, it gives wrong answers: sdpa gets its
  two-dimensional padding masks, which are not causal; and masks made as `ids != padding id` drop a padding id that
  stands in the text. The first table has the errors. The side that is timed gets causal masks made here, once per
  pass, and masks from lengths. All sides score with gspo's own likelihood.

`bound` is what the counted multiply-adds allow: those of repeated over those of shared, pointwise layers, query-key
pairs that are seen (a causal triangle counts half) and the head over the completions. Sides take turns; medians.
Memory is the growth of peak resident memory during one pass, in a forked process, after a trim of the heap.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from prefix_grouper import PrefixGrouper
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from gspo.policies import Network, TokenScorer
from gspo.policies.likelihood import token_logprobs
from gspo.sampling import Sampling
from gspo.training.batch import assemble
from gspo.types import Sample, Step

TARGET = Path(__file__).parent / "out" / "prefix.json"
VOCABULARY = 4096
RATIOS, GROUPS = (1, 4, 16), (4, 8, 16)


def model_of(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
            max_position_embeddings=32768,
        )
    ).eval()


def group(prompt: int, response: int, size: int, pad_every: int = 0) -> Step:
    """One group of random tokens as an optimizer step; every so many of them is the padding id, 0."""
    draw = torch.Generator().manual_seed(1)

    def ids(number: int) -> tuple[int, ...]:
        tokens = torch.randint(1, VOCABULARY, (number,), generator=draw).tolist()
        return tuple(0 if pad_every and i % pad_every == 1 else token for i, token in enumerate(tokens))

    shared = ids(prompt)
    rows = [
        Sample(
            group_id=0,
            rollout_id=i,
            index=i,
            prompt_ids=shared,
            completion_ids=ids(response),
            sampler_logprobs=(0.0,) * response,
            advantage=1.0,
            reward=0.0,
            is_trained=True,
        )
        for i in range(size)
    ]
    return assemble(rows, torch.device("cpu"))


def ours(network: Network, layout: Any) -> Callable[[Step], Tensor]:
    scorer = TokenScorer(network=network, scoring=Sampling(), micro_batch_tokens=10**9, layout=layout)
    return lambda step: scorer.score(step, "none").logprobs


def package(network: Network, *, is_repaired: bool, masks_from_ids: bool = False) -> Callable[[Step], Tensor]:
    """The package's own steps: concatenate, forward, split; hidden states are scored as gspo scores them."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor, causal: dict[tuple[int, ...], Tensor], scale: float
    ) -> Tensor:
        if is_repaired:
            if mask.shape not in causal:
                length = mask.shape[1]
                place = torch.arange(length)
                seen = place[None, :] <= place[length - query.shape[2] :, None]
                causal[mask.shape] = seen[None, None] & mask[:, None, None, :].bool()
                causal[mask.shape] |= (place[None, :] == place[length - query.shape[2] :, None])[None, None]
            mask = causal[mask.shape]
        else:
            mask = mask[:, None, None, :].bool()
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)

    def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **kwargs: Any) -> tuple[Tensor, None]:
        grouper: PrefixGrouper = kwargs["prefix_grouper"]
        return grouper.forward(attend, query, key, value, kwargs["causal"], kwargs["scaling"]), None

    name = f"package-{is_repaired}"
    AttentionInterface.register(name, forward)

    def run(step: Step) -> Tensor:
        prompt = torch.tensor([step.payload.prompt[0]])
        completions = torch.tensor(step.payload.completion)
        masks = (prompt != 0, completions != 0) if masks_from_ids else (prompt >= 0, completions >= 0)
        grouper = PrefixGrouper.from_ungrouped_masks(*masks, group_sizes=len(completions))
        ids = grouper.concat_input(prompt, masks[0], completions, masks[1])
        start, *lengths = grouper.group_info.prefix_lens[0], *masks[1].sum(dim=1).tolist()
        positions = torch.cat([torch.arange(start), *(torch.arange(start, start + n) for n in lengths)])
        network.config._attn_implementation = name
        try:
            hidden = network.body(
                input_ids=ids, position_ids=positions[None], use_cache=False, prefix_grouper=grouper, causal={}
            ).last_hidden_state
        finally:
            network.config._attn_implementation = "sdpa"
        _, _, suffix, _ = grouper.split_output(hidden, include_prefix_last=1)
        kept = grouper.convert_padding(completions, masks[1])
        real = torch.arange(kept.shape[1]) < torch.tensor(lengths)[:, None]
        flat = suffix[:, :-1][real]
        scored, _ = token_logprobs(network.head, flat, kept[real], Sampling(), "none", vocabulary=VOCABULARY)
        return torch.zeros(kept.shape).masked_scatter(real, scored)

    return run


def update(network: Network, side: Callable[[Step], Tensor], step: Step, is_flat: bool = False) -> None:
    """Gradients of the sum of log-probs, each with a weight of its own unless `is_flat`."""
    for p in network.model.parameters():
        p.grad = None
    scores = side(step)
    pull = torch.ones(scores.shape) if is_flat else torch.linspace(-1, 1, scores.numel()).view(scores.shape)
    (scores * pull).sum().backward()


def gradient(network: Network) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.model.parameters()])


def multiply_adds(network: Network, prompt: int, response: int, size: int) -> tuple[float, float]:
    """(repeated, shared), forward: layers, pairs that are seen, and the head."""
    shape = network.shape
    head = size * response * VOCABULARY * network.config.hidden_size
    own = response - 1  # the last token is predicted, never read
    apart = size * (prompt + own)
    apart_pairs = size * (prompt + own) ** 2 / 2
    together = prompt + size * own
    together_pairs = prompt**2 / 2 + size * own * (prompt + own / 2)
    cost = lambda tokens, pairs: shape.layers * (tokens * shape.linear + pairs * shape.pair) + head  # noqa: E731
    return cost(apart, apart_pairs), cost(together, together_pairs)


def peak_growth(work: Callable[[], None]) -> int:
    """Bytes by which peak resident memory grows during `work`, in a fork of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        work()
        os.write(write, str(_resident("VmHWM") - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(network: Network, prompt: int, response: int, size: int, rounds: int) -> dict[str, Any]:
    step = group(prompt, response, size)
    sides = {"repeated": ours(network, "padded"), "shared": ours(network, "shared_prefix")}
    sides["package"] = package(network, is_repaired=True)
    gradients = {}
    for name, side in sides.items():
        update(network, side, step)
        gradients[name] = gradient(network)
    errors = {
        name: ((g - gradients["repeated"]).norm() / gradients["repeated"].norm()).item()
        for name, g in gradients.items()
    }
    memory = {name: peak_growth(lambda side=side: update(network, side, step)) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            update(network, side, step)
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    repeated, shared = multiply_adds(network, prompt, response, size)
    return {
        "prompt": prompt,
        "response": response,
        "group": size,
        "seconds": median,
        "all": seconds,
        "bound": repeated / shared,
        "speedup": median["repeated"] / median["shared"],
        "package_speedup": median["repeated"] / median["package"],
        "memory": memory,
        "gradient_error": errors,
    }


def wrong_answers(network: Network) -> dict[str, float]:
    """Relative error of the gradient against rows apart, where the package is easy to hold wrong."""
    plain, with_pads = group(64, 16, 4), group(64, 16, 4, pad_every=8)
    cases = {
        "shared": (ours(network, "shared_prefix"), plain),
        "shared, the padding id inside the text": (ours(network, "shared_prefix"), with_pads),
        "package, sdpa as it comes": (package(network, is_repaired=False), plain),
        "package, causal masks made here": (package(network, is_repaired=True), plain),
        "package, the padding id inside the text": (package(network, is_repaired=True, masks_from_ids=True), with_pads),
    }
    found = {}
    for name, (side, step) in cases.items():
        update(network, ours(network, "padded"), step, is_flat=True)
        exact = gradient(network)
        update(network, side, step, is_flat=True)
        found[name] = ((gradient(network) - exact).norm() / exact.norm()).item()
    return found


def report(result: dict[str, Any]) -> None:
    console = Console(width=130)
    table = Table(title="Error of the gradient against rows apart (relative, prompt 64, 4 completions of 16)")
    table.add_column("")
    table.add_column("error", justify="right")
    for name, error in result["wrong_answers"].items():
        table.add_row(name, f"{error:.1e}")
    console.print(table)
    table = Table(title="Forward and backward of one group: repeated / that side (medians), and peak memory")
    for column in (
        "P",
        "R",
        "G",
        "bound",
        "shared",
        "of bound",
        "package",
        "shared / package",
        "MiB repeated",
        "shared",
        "package",
    ):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            *(str(row[key]) for key in ("prompt", "response", "group")),
            f"{row['bound']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['speedup'] / row['bound']:.0%}",
            f"{row['package_speedup']:.2f}",
            f"{row['speedup'] / row['package_speedup']:.2f}",
            *(f"{row['memory'][side] / 2**20:.0f}" for side in ("repeated", "shared", "package")),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--ratios", type=int, nargs="*", default=RATIOS)
    parser.add_argument("--groups", type=int, nargs="*", default=GROUPS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = Network(model_of(arguments.layers))
    result: dict[str, Any] = {
        "wrong_answers": wrong_answers(network),
        "rows": [
            measure(network, ratio * arguments.response, arguments.response, size, arguments.rounds)
            for ratio in arguments.ratios
            for size in arguments.groups
        ],
        "threads": arguments.threads,
        "layers": arguments.layers,
        "rounds": arguments.rounds,
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("gspo", "prefix-grouper", "torch", "transformers")},
        },
    }
    report(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
