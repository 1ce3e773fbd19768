"""What survives a step, saved whole and atomically.

A checkpoint is a folder `step_000020/` with `weights.safetensors` (master weights and optimizer moments),
`state.json` (counters and choices) and `manifest.json` (SHA-256 of both). It is written under another name, synced and
renamed, so that a half-written one never has the right name; a torn or altered one is found by its hashes. Many ranks
write a folder `weights/` of their shards instead (`gspo.dist.saving`); any number of ranks reads either.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
"""Of one process."""
SHARDS = "weights"
"""Of many ranks: a folder."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that changes between steps, apart from the tensors that the policy holds."""

    step: int = 0
    """Rollout batches trained."""
    version: int = 0
    """Optimizer updates made: the policy version."""
    cursor: int = 0
    """Prompts trained up to."""
    num_tokens: int = 0
    """Prompt and completion tokens of all rollout batches."""
    old_logprobs: str = ""
    """"sampler" or "policy" once settled."""
    threads: int = 1
    """CPU threads of the run: sums depend on them."""
    best: float = -1.0
    """Best held-out score so far."""
    seconds: float = 0.0
    """Wall-clock time spent in the run so far."""
    before: dict[str, Any] = field(default_factory=dict)
    """Held-out scores before training, and examples."""
    after: dict[str, Any] = field(default_factory=dict)
    """Newest held-out scores, and examples."""
    dropped: list[int] = field(default_factory=list)
    """Rows of the data that a schedule draws no more, for being solved."""
    advantage: Any = None
    """State of the advantage estimator."""
    objective: Any = None
    """State of the objective."""


def checkpoint_name(step: int) -> str:
    return f"step_{step:06d}"


class Saver(Protocol):
    """Writes checkpoints, at once or in the background."""

    def save(self, folder: Path, state: TrainState, tensors: Mapping[str, Tensor], keep: int) -> None: ...
    def settle(self) -> None:
        """Between two steps."""
        ...

    def finish(self) -> None:
        """When this returns, what was saved lies under its name."""
        ...


class FileSaver:
    """At once, in one file."""

    def save(self, folder: Path, state: TrainState, tensors: Mapping[str, Tensor], keep: int) -> None:
        save(folder, state, tensors, keep)

    def settle(self) -> None:
        pass

    def finish(self) -> None:
        pass


def save(folder: Path, state: TrainState, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write `folder/step_N`, then drop all but the newest `keep`."""
    target = folder / checkpoint_name(state.step)
    partial = folder / (target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial / WEIGHTS)
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
        hashes = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for path in partial.iterdir():
            sync(path)
    except Exception:  # safetensors has an error of its own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    sync(folder)
    for old in checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first; unfinished ones do not count."""
    return sorted((p for p in folder.glob("step_*") if p.suffix != ".partial"), reverse=True)


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, Tensor]]:
    """State and whole tensors of the newest checkpoint whose hashes are right; see `newest`."""
    from gspo.dist.saving import read_like

    state, path = newest(folder, warn)
    return state, read_like(path, {})


def newest(folder: Path, warn: Callable[[str], None]) -> tuple[TrainState, Path]:
    """The newest checkpoint whose hashes are right; damaged ones are named through `warn` and passed over."""
    found = checkpoints(folder)
    for path in found:
        fault = damage(path)
        if fault:
            warn(f"checkpoint {path.name} is damaged ({fault}); using the one before")
            continue
        return TrainState(**json.loads((path / "state.json").read_text())), path
    if found:
        raise ValueError(f"all {len(found)} checkpoints under {folder} are damaged; start the run again")
    raise ValueError(f"no checkpoint under {folder}: the run did not get as far as its first one; start it again")


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        hashes = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in hashes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != expected:
            return f"{name} does not match its hash"
    return ""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Ask the kernel to put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
