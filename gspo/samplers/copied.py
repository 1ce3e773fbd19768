"""Samplers on a copy of the weights: in another dtype, as an inference engine in half precision is to a trainer, or in
another process, so that one side samples while the other trains."""

import copy
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import Any, Literal

import torch
from torch import nn

from gspo.samplers.base import Closes, Sampler, SampleRequest, SamplerLost, SamplesEach
from gspo.types import Completion


def copy_of(model: nn.Module, dtype: torch.dtype | None = None, device: torch.device | None = None) -> nn.Module:
    """Parameters in `dtype` (None: their own) and on `device`; buffers (rotary frequencies) keep their dtype."""
    copied = copy.deepcopy(model).requires_grad_(False).eval()
    if device is not None:
        copied = copied.to(device)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    return copied


class Copied:
    """Wraps a sampler on `copied`, which takes over the weights of the policy's model."""

    def __init__(self, sampler: Sampler, copied: nn.Module) -> None:
        self.sampler, self.copied = sampler, copied
        self.scores: Literal["exact", "guided", "none"] = sampler.scores

    def sync_weights(self, policy: Any, version: int) -> None:
        self._take_over(list(policy.network.model.parameters()))
        self.sampler.sync_weights(None, version)

    def snapshot(self, policy: Any, version: int) -> Callable[[], None]:
        kept = [parameter.detach().clone() for parameter in policy.network.model.parameters()]

        def put() -> None:
            self._take_over(kept)
            self.sampler.sync_weights(None, version)

        return put

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        return self.sampler.sample(requests)

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        assert isinstance(self.sampler, SamplesEach)
        yield from self.sampler.sample_each(requests)

    def close(self) -> None:
        if isinstance(self.sampler, Closes):
            self.sampler.close()

    @torch.no_grad()
    def _take_over(self, parameters: Sequence[torch.Tensor]) -> None:
        for to, source in zip(self.copied.parameters(), parameters, strict=True):
            to.copy_(source)


class InProcessOfItsOwn:
    """Runs a sampler in another process, on weights in memory that both share.

    A process that has died is started again, at most `restarts` times in a row, and draws the same completions: random
    streams are functions of counters. Only the sampler's own version travels with its requests.
    """

    def __init__(self, sampler: Sampler, model: nn.Module, threads: int = 1, restarts: int = 2) -> None:
        if not isinstance(sampler, SamplesEach):
            raise ValueError(f'sampler = "process" needs groups as they end, and {type(sampler).__name__} gives none')
        model.share_memory()
        self._gpus = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
        self.scores: Literal["exact", "guided", "none"] = sampler.scores
        self._sampler, self._threads, self._restarts = sampler, threads, restarts
        self._version, self._number = 0, 0
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._lock = Lock()
        self._is_closed = False

    @property
    def pid(self) -> int:
        """Of the process, started if there is none."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._process is not None and self._process.pid is not None
        return self._process.pid

    def sync_weights(self, policy: object, version: int) -> None:
        """The weights are shared: they have arrived before the process is told of their version."""
        for gpu in self._gpus:
            torch.cuda.current_stream(gpu).synchronize()
        self._version = version

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Completion]]:
        found = dict(self.sample_each(requests))
        return [found[i] for i in range(len(requests))]

    def sample_each(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        """A group that was given before the process died is not given again."""
        with self._lock:
            given: set[int] = set()
            for attempt in range(self._restarts + 1):
                try:
                    for number, completions in self._asked(requests):
                        if number not in given:
                            given.add(number)
                            yield number, completions
                    return
                except (EOFError, OSError) as error:
                    process = self._process
                    if process is not None:
                        process.join()
                    code = None if process is None else process.exitcode
                    self._end()
                    if attempt == self._restarts or self._is_closed:
                        raise SamplerLost(
                            f"the sampler's process ended (exit code {code}) {attempt + 1} times in a row; {_why(code)}"
                        ) from error

    def close(self) -> None:
        """End the process; a wave under way fails."""
        self._is_closed = True
        self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _asked(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, list[Completion]]]:
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        self._number += 1
        self._pipe.send((self._number, self._version, list(requests)))
        while True:
            number, index, answer = self._pipe.recv()
            if number != self._number:
                continue  # of a wave that nobody waited for to its end
            if index is None:
                if isinstance(answer, BaseException):
                    raise answer
                return
            yield index, answer

    def _start(self) -> None:
        """`spawn`: a fork would copy threads' locks."""
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._sampler, self._threads), name="gspo-sampler", daemon=True
        )
        self._process.start()
        theirs.close()


def _why(code: int | None) -> str:
    """What ended a process, as far as its exit code tells."""
    if code == 1:
        return (
            "its own error stands above; a script that starts a run must do so under "
            '`if __name__ == "__main__":`, because the process reads the script again'
        )
    return "if the system killed it, it may lack memory: lower sampler_rows"


def _serve(pipe: Connection, sampler: Any, threads: int) -> None:
    """The process: waves of requests in, groups out, then (None, None) or what went wrong."""
    os.setpgid(0, 0)  # Ctrl-C and torchrun's TERM go to the whole group of the trainer, and are its to answer
    torch.set_num_threads(threads)
    while True:
        try:
            number, version, requests = pipe.recv()
        except EOFError:
            return
        sampler.sync_weights(None, version)
        try:
            for index, completions in sampler.sample_each(requests):
                pipe.send((number, index, completions))
            pipe.send((number, None, None))
        except Exception as error:
            pipe.send((number, None, ValueError(f"the sampler's process: {type(error).__name__}: {error}")))
