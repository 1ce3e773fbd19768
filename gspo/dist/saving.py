"""Checkpoints of many ranks through torch.distributed.checkpoint.

A checkpoint is the same folder as in one process, with `weights/` in place of `weights.safetensors`: each rank writes
its own shards there, in the background while training goes on. Once all have written, each hashes its files, and rank 0
puts the manifest beside them and gives the folder its name. Either kind is read by any number of ranks.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from gspo.dist.ranks import Ranks
from gspo.training.state import MANIFEST, SHARDS, WEIGHTS, TrainState, checkpoint_name, checkpoints, sha256, sync


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A checkpoint that is being written."""

    folder: Path
    name: str
    keep: int
    written: Future


class ShardSaver:
    """Saves in the background; `settle` and `finish` are calls of all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._group = dist.new_group(backend="gloo")
        """Of the thread that writes: its collectives must not meet those of training."""
        self._pending: _Pending | None = None

    def save(self, folder: Path, state: TrainState, tensors: Mapping[str, Tensor], keep: int) -> None:
        self.finish()
        name = checkpoint_name(state.step)
        partial = folder / f"{name}.partial"
        self.ranks.first(lambda: _begin(partial, state))
        writer = FileSystemWriter(partial / SHARDS, sync_files=True)
        # A tensor on the CPU may be handed to the thread as it is, and the next update would write into it.
        staged: dict[str, Any] = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        written = dcp.async_save(staged, storage_writer=writer, process_group=self._group)
        assert isinstance(written, Future)
        self._pending = _Pending(folder=folder, name=name, keep=keep, written=written)

    def settle(self) -> None:
        """Between two steps: a checkpoint that all ranks have written gets its name."""
        if self._pending is not None and not self.ranks.largest(int(not self._pending.written.done())):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint under way."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.written.result()
        partial = pending.folder / f"{pending.name}.partial"
        own = sorted((partial / SHARDS).glob(f"__{self.ranks.rank}_*"))
        hashes = self.ranks.everyone({f"{SHARDS}/{path.name}": sha256(path) for path in own})
        self.ranks.first(lambda: _put(pending, {name: value for part in hashes for name, value in part.items()}))


def _begin(partial: Path, state: TrainState) -> None:
    """A folder to write into; what an interrupted run has left of others goes."""
    for left in partial.parent.glob("step_*.partial"):
        shutil.rmtree(left)
    (partial / SHARDS).mkdir(parents=True)
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))


def _put(pending: _Pending, hashes: dict[str, str]) -> None:
    """The manifest, the name; then all but the newest go."""
    target = pending.folder / pending.name
    partial = pending.folder / f"{pending.name}.partial"
    for own in (Path("state.json"), Path(SHARDS) / ".metadata"):
        hashes[str(own)] = sha256(partial / own)
    (partial / MANIFEST).write_text(json.dumps(dict(sorted(hashes.items())), indent=1))
    for path in (partial / "state.json", partial / MANIFEST):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    sync(pending.folder)
    for old in checkpoints(pending.folder)[pending.keep :]:
        shutil.rmtree(old)


def read_like(path: Path, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors, each rank's part of them, laid out like the master weights."""
    return _from_shards(path / SHARDS, masters) if (path / SHARDS).is_dir() else _from_file(path / WEIGHTS, masters)


def _from_file(path: Path, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: _laid_out(file.get_tensor(key), _master_of(key, masters)) for key in file.keys()}  # noqa: SIM118


def _from_shards(folder: Path, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    reader = FileSystemReader(folder)
    found: dict[str, Any] = {}
    for key, entry in reader.read_metadata().state_dict_metadata.items():
        master = _master_of(key, masters)
        size, dtype = entry.size, entry.properties.dtype  # type: ignore[union-attr]
        is_like = master is not None and master.shape == size
        found[key] = torch.empty_like(master, dtype=dtype) if is_like else torch.empty(size, dtype=dtype)
    with warnings.catch_warnings():  # that there is one process is no news
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(found, storage_reader=reader)
    return found


def _master_of(key: str, masters: Mapping[str, Tensor]) -> Tensor | None:
    """The weight that a tensor of a checkpoint is, or is a moment of; None where it is one number, or nobody's."""
    kind, _, name = key.partition(".")
    return None if kind == "step" else masters.get(name)


def _laid_out(tensor: Tensor, master: Tensor | None) -> Tensor:
    """This rank's part of it; of another shape than the master it stays as it is, to be refused by name."""
    if not isinstance(master, DTensor) or tensor.shape != master.shape:
        return tensor
    placements: list[Shard | Replicate] = list(master.placements)  # type: ignore[arg-type]
    return distribute_tensor(tensor.to(master.device), master.device_mesh, placements, src_data_rank=None)
