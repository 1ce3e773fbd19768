"""The ranks of a run, and the values that travel between them. One process is a rank alone."""

import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from gspo.dist.config import RanksConfig


class Ranks(Protocol):
    """What ranks say to each other. All of them make the same calls in the same order."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Rank 0 collects, prints and writes."""
        ...

    @property
    def is_many(self) -> bool:
        """Whether the run is spread over ranks, be it one."""
        ...

    @property
    def local_size(self) -> int:
        """Ranks on this machine: its cores are theirs together."""
        ...

    def open(self, settings: RanksConfig, device: str) -> None:
        """Meet the others. Later calls do nothing."""
        ...

    def everyone(self, value: Any) -> list[Any]:
        """The value of each rank, in order."""
        ...

    def from_first(self, value: Any) -> Any:
        """Rank 0's value."""
        ...

    def first(self, work: Callable[[], Any]) -> Any:
        """What `work()` gives on rank 0, where alone it runs; its error reaches every rank."""
        ...

    def largest(self, number: int) -> int: ...
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its sum over the ranks, in place."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1
    is_first: bool = True
    is_many: bool = False
    local_size: int = 1

    def open(self, settings: RanksConfig, device: str) -> None:
        pass

    def everyone(self, value: Any) -> list[Any]:
        return [value]

    def from_first(self, value: Any) -> Any:
        return value

    def first(self, work: Callable[[], Any]) -> Any:
        return work()

    def largest(self, number: int) -> int:
        return number

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        pass


@dataclass(frozen=True)
class _Answer:
    """Of work that one rank did for all."""

    value: Any = None
    error: Exception | None = None


PATIENCE = 3.0
"""Seconds that a rank which has lost another waits for it to say why."""


class Team:
    """The processes that torchrun or Ray started, over torch.distributed: gloo on CPUs, NCCL between GPUs.

    Values go through gloo, as pickles of CPU tensors: nothing that is sent ever depends on a GPU's stream. `meeting`
    is where the ranks find each other, as torch.distributed reads it. `sees_own_gpu`: each rank sees one GPU, its own,
    as Ray has it; under torchrun the ranks of a machine see all of its GPUs.
    """

    is_many = True

    def __init__(
        self,
        rank: int,
        size: int,
        local_rank: int = 0,
        local_size: int = 1,
        meeting: str = "env://",
        sees_own_gpu: bool = False,
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.meeting, self.sees_own_gpu = meeting, sees_own_gpu
        self._values: Any = None
        """The group of all ranks that values travel in."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def open(self, settings: RanksConfig, device: str) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            return
        if self.size % settings.sees_alike:
            raise ValueError(
                f"ranks.tensor_parallel = {settings.tensor_parallel} times ranks.context_parallel = "
                f"{settings.context_parallel} does not divide the {self.size} ranks of this run"
            )
        kind = _device_kind(device)
        if kind == "cuda":
            torch.cuda.set_device(self._gpu())
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            init_method=self.meeting,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=settings.deadline),
        )
        self._values = dist.new_group(backend="gloo", timeout=timedelta(seconds=settings.deadline))

    def _gpu(self) -> int:
        """Its number among those that this rank sees."""
        if self.sees_own_gpu:
            return 0
        if self.local_size > torch.cuda.device_count():
            raise ValueError(
                f"{self.local_size} ranks on a machine with {torch.cuda.device_count()} GPUs; start torchrun with "
                f"--nproc-per-node {torch.cuda.device_count()}"
            )
        return self.local_rank

    def everyone(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found = [None] * self.size
        dist.all_gather_object(found, value, group=self._values)
        return found

    def from_first(self, value: Any) -> Any:
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._values)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        if not self.is_first:
            answer = self.from_first(None)
            if answer.error is not None:
                raise answer.error
            return answer.value
        try:
            value = work()
        except Exception as error:
            self.from_first(_Answer(error=portable(error)))
            raise
        self.from_first(_Answer(value=value))
        return value

    def largest(self, number: int) -> int:
        import torch.distributed as dist

        box = torch.tensor([number])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._values)
        return int(box)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)

    def is_first_to_fail(self, line: str, waits: bool = False) -> bool:
        """Whether no other rank has said why the run ends. `waits` a little for one that knows better.

        Before the ranks have met, each machine's first one speaks: what is wrong then is wrong for all.
        """
        import torch.distributed as dist

        if not dist.is_initialized():
            if self.local_rank:  # torchrun ends the others as soon as one is gone
                time.sleep(PATIENCE)
            return self.local_rank == 0
        store, said = dist.distributed_c10d._get_default_store(), "gspo/failed"
        until = time.monotonic() + (PATIENCE if waits else 0.0)
        while time.monotonic() < until and not store.check([said]):
            time.sleep(0.05)
        own = f"{self.rank}: {line}"
        return store.compare_set(said, "", own).decode() == own

    def close(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ValueError(f"{type(error).__name__}: {error}")
    return error


def _device_kind(device: str) -> str:
    if device == "mps":
        raise ValueError('device = "mps" has no collectives: many ranks run on "cpu" or "cuda"')
    if device.startswith("cuda:"):
        raise ValueError(f'device = "{device}" is one GPU for all ranks; use device = "cuda"')
    return "cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


ALONE = Alone()


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """The ranks that torchrun's variables speak of; a rank alone where there are none."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return ALONE
    return Team(
        rank=int(environment["RANK"]),
        size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
    )
