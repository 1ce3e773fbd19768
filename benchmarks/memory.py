"""Peak memory of one optimizer update (forward, backward, AdamW): gspo, TRL's GRPOTrainer, materialised logits.

    HF_HUB_OFFLINE=1 python benchmarks/memory.py [--parts rows vocabulary length] [--threads 1] [--fresh]

A Llama of SmolLM2-135M's shape (width 576, 30 layers, random weights, float32, tied head) takes one GSPO update on
rows of 64 prompt tokens and completions that fill them up to the length. Sides:

- gspo: `TrainedPolicy.forward_backward` and `optim_step`, padded rows (no prefix is shared: all sides compute the
  same tokens). `micro_batch_tokens` as given; `checkpoint`: activations computed again in the backward pass.
- trl: the trainer's own step and optimizer (`GRPOTrainer.train`), with generation replaced by the same tokens; batch
  of all rows, or of one row with gradients accumulated over the rows. Its chunked head is on, as it always is in 1.16;
  gradient checkpointing is on by default there.
- materialised: the model's full logits in float32 and `log_softmax`, all rows at once.

"blocks returned": glibc otherwise comes to keep freed blocks of up to 32 MiB, in pieces that fit nothing; any process
can be told not to (`mallopt`, or MALLOC_MMAP_THRESHOLD_ in the environment).

Each measurement is a process of its own. A first update on short rows makes optimizer state and gradient buffers and
is not counted; then the heap is trimmed, the kernel's peak (VmHWM) reset, and the second update taken. `peak` is all
that the process holds at its height, `above` what of it the update added. A process may allocate LIMIT_GIB; what asks
for more "does not fit". Finished measurements in benchmarks/out/memory.json are kept unless `--fresh`.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import gspo
from gspo.policies import Network, TokenScorer, TrainedPolicy
from gspo.policies.master import AdamW
from gspo.sampling import Sampling
from gspo.training.batch import assemble
from gspo.types import Sample, Step

TARGET = Path(__file__).parent / "out" / "memory.json"
LIMIT_GIB, BUDGET_GIB = 12.0, 6.0
"""What a process may allocate, and the peak for which the longest row is looked up."""
PROMPT, LR = 64, 1e-6
SMALL, LARGE = 49_152, 151_936
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Case:
    """One measurement."""

    side: str
    micro_batch_tokens: int = 0
    """Tokens that go forward together."""
    checkpoint: bool = False
    returns_blocks: bool = False
    """The C library gives blocks of 1 MiB and more back to the system when they are freed, instead of keeping them."""
    rows: int = 8
    length: int = 512
    vocabulary: int = SMALL

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def name(self) -> str:
        forward = f", {self.micro_batch_tokens:,} tokens at once" if self.side != "materialised" else ""
        return self.side + forward + ", checkpointing" * self.checkpoint + ", blocks returned" * self.returns_blocks


def cases(parts: list[str]) -> list[Case]:
    whole = 8 * 512
    ours = [Case("gspo", tokens) for tokens in (whole, 2048, 1024, 512)]
    checkpointed = [Case("gspo", tokens, True, is_on) for tokens in (whole, 512) for is_on in (False, True)]
    returned = [Case("gspo", 512, False, True), Case("trl", whole, True, True)]
    theirs = [Case("trl", tokens, is_on) for tokens in (whole, 512) for is_on in (True, False)]
    chosen = {
        "rows": [*ours, *checkpointed, *theirs, *returned, Case("materialised")],
        "vocabulary": [
            Case("gspo", 512, True, vocabulary=LARGE),
            Case("gspo", whole, True, vocabulary=LARGE),
            Case("trl", whole, True, vocabulary=LARGE),
            Case("trl", 512, True, vocabulary=LARGE),
            Case("materialised", vocabulary=LARGE),
        ],
        "length": [
            Case(side, length, is_on, rows=1, length=length)
            for length in (512, 1024, 2048, 4096, 8192)
            for side, is_on in (("gspo", True), ("trl", True), ("gspo", False), ("materialised", False))
        ],
    }
    return [case for part in parts for case in chosen[part]]


def model_of(vocabulary: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(shape).eval()


def tokens_of(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(length))


def advantages_of(rows: int) -> torch.Tensor:
    return torch.linspace(-1, 1, rows) if rows > 1 else torch.ones(1)


class Meter:
    """Resident memory of this process in bytes, from the reset on."""

    def start(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.started = self._status("VmRSS"), time.perf_counter()

    def stop(self) -> None:
        self.peak, self.seconds = self._status("VmHWM"), time.perf_counter() - self.started

    def _status(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def gspo_update(case: Case, meter: Meter) -> None:
    network = Network(model_of(case.vocabulary), case.checkpoint)
    scorer = TokenScorer(
        network=network, scoring=Sampling(), micro_batch_tokens=case.micro_batch_tokens, layout="padded"
    )
    policy, objective = TrainedPolicy(scorer, AdamW(lr=LR)), gspo.GSPO()

    def update(rows: int, length: int) -> None:
        step = step_of(tokens_of(rows, length, case.vocabulary).tolist())
        policy.forward_backward(step, [objective.weights(step, objective.counts(step))], [objective])
        policy.optim_step(LR)

    update(1, PROMPT + 16)
    meter.start()
    update(case.rows, case.length)
    meter.stop()


def step_of(rows: list[list[int]]) -> Step:
    advantage = advantages_of(len(rows)).tolist()
    samples = [
        Sample(
            group_id=0,
            rollout_id=i,
            index=i,
            prompt_ids=tuple(row[:PROMPT]),
            completion_ids=tuple(row[PROMPT:]),
            sampler_logprobs=(-10.0,) * len(row[PROMPT:]),
            advantage=advantage[i],
            reward=0.0,
            is_trained=True,
        )
        for i, row in enumerate(rows)
    ]
    return assemble(samples, torch.device("cpu"))


def trl_update(case: Case, meter: Meter) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = {f"w{i}": i for i in range(case.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w2", eos_token="w2"
    )
    # A group has two members at least: a length alone is two rows, one after the other.
    batch = max(1, case.micro_batch_tokens // case.length)

    class Measure(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                meter.start()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                meter.stop()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=case.checkpoint,
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=3e-4,
            epsilon_high=4e-4,
            beta=0.0,
            temperature=1.0,
            num_generations=max(2, case.rows),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=max(2, case.rows) // batch,
            max_steps=2,
            max_completion_length=case.length - PROMPT,
            learning_rate=LR,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model_of(case.vocabulary),
            processing_class=tokenizer,
            reward_funcs=lambda completions, **columns: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "w3"}] * 4),
            callbacks=[Measure()],
        )
        trainer._generate_and_score_completions = lambda batch: trl_batch(case, trainer.state.global_step)
        trainer.train()


def trl_batch(case: Case, update: int) -> dict[str, torch.Tensor]:
    """What TRL's generation would have made: short rows first, then the rows that are measured."""
    length = PROMPT + 16 if update == 0 else case.length
    ids = tokens_of(max(2, case.rows), length, case.vocabulary)
    completion = torch.ones(len(ids), length - PROMPT, dtype=torch.long)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(len(ids), PROMPT, dtype=torch.long),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": completion,
        "advantages": advantages_of(len(ids)),
        "num_items_in_batch": completion.sum(),
    }


def materialised_update(case: Case, meter: Meter) -> None:
    model = model_of(case.vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def update(rows: int, length: int) -> None:
        ids = tokens_of(rows, length, case.vocabulary)
        logits = model(input_ids=ids, use_cache=False).logits[:, PROMPT - 1 : -1]
        logprobs = logits.log_softmax(dim=-1).gather(2, ids[:, PROMPT:, None])[..., 0]
        ratio = (logprobs - logprobs.detach()).mean(dim=1).exp()
        (-(ratio * advantages_of(rows)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    update(1, PROMPT + 16)
    meter.start()
    update(case.rows, case.length)
    meter.stop()


SIDES = {"gspo": gspo_update, "trl": trl_update, "materialised": materialised_update}


def measure(case: Case, threads: int) -> dict[str, Any]:
    """In a process of its own: peak bytes, what the update added, seconds; or that it does not fit."""
    wait_for_room()
    words = [sys.executable, __file__, "--case", case.key, "--threads", str(threads)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode == 0:
        return {"fits": True, **json.loads(done.stdout.splitlines()[-1])}
    if "allocate memory" in done.stderr or "MemoryError" in done.stderr or done.returncode < 0:
        return {"fits": False}
    raise SystemExit(f"{case.name} failed:\n{done.stderr[-3000:]}")


def wait_for_room() -> None:
    """Until a measurement could take all that it may without pushing others out."""
    while True:
        lines = Path("/proc/meminfo").read_text().splitlines()
        if 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) > LIMIT_GIB * 2**30:
            return
        time.sleep(5)


def child(case: Case) -> None:
    limit = int(LIMIT_GIB * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if case.returns_blocks:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**22)
    meter = Meter()
    SIDES[case.side](case, meter)
    print(json.dumps({"peak": meter.peak, "above": meter.peak - meter.before, "seconds": meter.seconds}))


def report(results: dict[str, dict[str, Any]], chosen: list[Case]) -> None:
    console = Console(width=120)
    for rows, length, vocabulary in dict.fromkeys((c.rows, c.length, c.vocabulary) for c in chosen):
        table = Table(title=f"{rows} x {length} tokens, vocabulary {vocabulary:,}, float32: memory of one update")
        for column in ("", "peak GiB", "above GiB", "seconds"):
            table.add_column(column, justify="left" if not column else "right")
        for case in chosen:
            if (case.rows, case.length, case.vocabulary) != (rows, length, vocabulary):
                continue
            found = results[case.key]
            figures = [f"{found[name] / 2**30:.2f}" for name in ("peak", "above")] if found["fits"] else ["-", "-"]
            note = f"{found['seconds']:.0f}" if found["fits"] else f"more than {LIMIT_GIB:g} GiB"
            table.add_row(case.name, *figures, note)
        console.print(table)
    longest: dict[str, int] = {}
    for case in chosen:
        found = results[case.key]
        if case.rows == 1 and found["fits"] and found["peak"] <= BUDGET_GIB * 2**30:
            name = f"{case.side}{', checkpointing' if case.checkpoint else ''}"
            longest[name] = max(longest.get(name, 0), case.length)
    if longest:
        console.print(f"longest row measured with a peak of at most {BUDGET_GIB:g} GiB:", longest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("rows", "vocabulary", "length"), default=["rows", "vocabulary"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        child(Case(**json.loads(arguments.case)))
        return
    chosen = cases(arguments.parts)
    is_kept = arguments.out.exists() and not arguments.fresh
    results: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text())["results"] if is_kept else {}
    for case in chosen:
        if case.key not in results:
            results[case.key] = measure(case, arguments.threads)
            print(case.key, results[case.key], flush=True)
        versions = {name: metadata.version(name) for name in ("gspo", "trl", "torch", "transformers")}
        written = {"results": results, "versions": versions, "machine": platform.machine()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(written, indent=1) + "\n")
    report(results, chosen)


if __name__ == "__main__":
    main()
